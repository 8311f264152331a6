"""The style of the page that html.py writes.

In light and in dark every colour of text or of a line has a contrast of at least 4.5 to its ground, and every fill of a
bar one of 3; a test computes them.
"""

LIGHT = {
    "ground": "#ffffff",
    "text": "#1b1f24",
    "soft": "#5c6570",
    "rule": "#d9dde2",
    "faint": "#e9ecef",
    "wash": "#dbe8f7",
    "link": "#0b57a4",
    "s0": "#0b5fb5",
    "s1": "#b5460f",
    "s2": "#7b3fa3",
    "s3": "#00705a",
    "s4": "#4a5058",
    "s5": "#8a6100",
    "s6": "#a8326e",
    "s7": "#3d6b1f",
    "f0": "#848d97",
    "f1": "#2f7fd6",
    "f2": "#c77f10",
    "f3": "#3d9c7c",
    "f4": "#a873c4",
    "f5": "#d06a52",
    "hatch": "#ffffff",
}

DARK = {
    "ground": "#15181c",
    "text": "#e4e7eb",
    "soft": "#9aa4af",
    "rule": "#343a42",
    "faint": "#262b31",
    "wash": "#1d3656",
    "link": "#7db8ff",
    "s0": "#6cb0ff",
    "s1": "#ff9a66",
    "s2": "#cba2f2",
    "s3": "#4fcfae",
    "s4": "#c3c9d1",
    "s5": "#e3bb55",
    "s6": "#f291bd",
    "s7": "#a5d07f",
    "f0": "#6b747f",
    "f1": "#3f8be0",
    "f2": "#d89b35",
    "f3": "#4c9c80",
    "f4": "#9a74b0",
    "f5": "#b8705d",
    "hatch": "#15181c",
}


def variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


SLOT_RULES = "".join(f".s{slot}{{--c:var(--s{slot})}}" for slot in range(8))
PART_RULES = "".join(f".p{slot}{{fill:url(#part-{slot})}}.f{slot}{{fill:var(--f{slot})}}" for slot in range(6))

RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:1rem}
body{margin:0;background:var(--ground);color:var(--text);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans","Liberation Sans",Arial,
 sans-serif}
.page{max-width:74rem;margin:0 auto;padding:2.5rem 1.75rem 4rem;
 display:grid;grid-template-columns:12.5rem minmax(0,53rem);column-gap:3.75rem;justify-content:center}
header,main{grid-column:2;min-width:0}
header{grid-row:1}main{grid-row:2}
h1{font-size:1.15rem;font-weight:600;margin:0 0 .35rem;letter-spacing:.01em}
h2{font-size:1.5rem;line-height:1.25;font-weight:650;letter-spacing:-.012em;margin:0 0 .6rem;text-wrap:balance}
h3{font-size:1rem;font-weight:600;margin:2rem 0 .5rem}
p{margin:0 0 .8rem;max-width:44rem}
a{color:var(--link);text-underline-offset:.18em;text-decoration-thickness:.06em}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--link);outline-offset:3px;
 border-radius:2px}
code,.mono{font-family:ui-monospace,SFMono-Regular,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;
 font-size:.875em}
.soft,.method,.note{color:var(--soft)}
.machine{margin:0;color:var(--soft);max-width:none}
.note{font-size:.875rem;margin:.5rem 0 0}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.skip:not(:focus){position:absolute;left:-99rem}
nav{grid-column:1;grid-row:1/span 2;position:sticky;top:2.5rem;align-self:start;font-size:.875rem;line-height:1.4;
 max-height:calc(100vh - 5rem);overflow-y:auto}
nav ul{list-style:none;margin:0;padding:0}
nav li{margin:0 0 .55rem}
nav a{color:var(--soft);text-decoration:none}
nav a:hover{color:var(--link);text-decoration:underline}
section{margin-top:4rem}
main>section:first-child{margin-top:2.25rem}
.headlines{list-style:none;margin:0;padding:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));
 gap:0 3rem}
.headlines>li{border-top:1px solid var(--rule);padding:.8rem 0 1.2rem}
.headlines a{font-weight:600;text-decoration:none;color:var(--text)}
.headlines a:hover{color:var(--link);text-decoration:underline}
.headlines dl{display:grid;grid-template-columns:minmax(5.4rem,max-content) minmax(0,1fr);column-gap:.9rem;
 margin:.35rem 0 0;align-items:baseline}
.headlines dt{font-size:1.45rem;line-height:1.45;font-weight:650;color:var(--s0);
 font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.headlines dd{margin:0;line-height:1.3;overflow-wrap:anywhere}
.headlines dd small{display:block;color:var(--soft);font-size:.8125rem}
.headlines p{margin:.3rem 0 0;color:var(--soft);font-size:.9375rem}
.block{margin:2rem 0 0}
figure{margin:2rem 0 0}
caption,figcaption{text-align:left;font-size:.9375rem;line-height:1.4;font-weight:600;padding:0 0 .5rem}
.scroll{overflow-x:auto;scrollbar-width:thin;position:relative}
table{border-collapse:collapse;width:100%;font-size:.875rem;line-height:1.4;font-variant-numeric:tabular-nums}
th,td{padding:.36rem .6rem;text-align:left;vertical-align:baseline;font-weight:400}
th:first-child,td:first-child{padding-left:.25rem}
thead th{color:var(--soft);vertical-align:bottom;border-bottom:1px solid var(--soft);
 line-height:1.25}
tbody tr{border-bottom:1px solid var(--faint)}
tbody tr:last-child{border-bottom-color:var(--rule)}
.n{text-align:right;white-space:nowrap}
thead .n{white-space:normal}
.keyed{white-space:nowrap}
.u{display:block;font-size:.857em}
.q{display:inline-block;margin-left:.5em;font-size:.857em;color:var(--soft);font-weight:400;text-align:left}
.best{font-weight:650}
.best .q{font-weight:400}
.x{background:linear-gradient(var(--wash),var(--wash)) 0 50%/var(--w) calc(100% - 5px) no-repeat;
 -webkit-print-color-adjust:exact;print-color-adjust:exact}
thead .n[style]{padding-right:calc(.6rem + .43em + .857*var(--q))}
.against{font-size:.857em;color:var(--soft);font-weight:400;white-space:nowrap}
.wide{font-size:.8125rem}
.wide th,.wide td{padding-left:.4rem;padding-right:.4rem}
.wide .name{min-width:5rem}
.wide .q{display:block;margin:0;min-width:0!important;text-align:right}
.wide thead .n[style]{padding-right:.4rem}
.name{min-width:8rem;white-space:nowrap}
.long{white-space:normal}
.key{width:.75rem;height:.75rem;margin-right:.4rem;vertical-align:-.06rem;overflow:visible}
.bars .stack{width:38%;min-width:9rem;vertical-align:middle}
.bar{display:block;overflow:visible}
.bar rect{stroke:var(--ground);stroke-width:1}
.hatch{stroke:var(--hatch);stroke-width:1.1;fill:none;opacity:.75}
.dot{fill:var(--hatch);opacity:.8}
.defs{position:absolute}
.plot{display:block;width:100%;height:auto;min-width:34rem;overflow:visible;font-variant-numeric:tabular-nums}
.plot text{font-size:12.5px;fill:var(--soft)}
.plot .what{fill:var(--text)}
.plot .label{fill:var(--c);font-weight:600}
.grid{stroke:var(--faint);fill:none}
.axis{stroke:var(--soft);fill:none}
.line{stroke:var(--c);stroke-width:2;fill:none;stroke-linejoin:round;stroke-linecap:butt}
.leader{stroke:var(--c);stroke-width:1;fill:none;stroke-dasharray:1.5 2.5;opacity:.8}
.mark{fill:var(--c);stroke:var(--ground);stroke-width:1}
.mark .open{stroke:var(--c);stroke-width:1.8;fill:none}
.hit{fill:transparent;stroke:none}
.mark:hover .hit{stroke:var(--c);stroke-width:1.5}
details{margin:.25rem 0 0;font-size:.875rem}
summary{color:var(--soft);cursor:pointer;width:max-content}
details[open] summary{margin-bottom:.4rem}
.facts th{color:var(--soft);width:14rem;vertical-align:top}
.facts td{overflow-wrap:anywhere;white-space:pre-wrap;font-size:.93em}
.facts th,.facts td{padding-top:.2rem;padding-bottom:.2rem}
.kinds{list-style:none;padding:0;margin:0 0 .8rem;display:flex;flex-wrap:wrap;gap:.2rem 1.4rem}
.reading{display:grid;grid-template-columns:max-content minmax(0,40rem);gap:.55rem 1.5rem;margin:1.2rem 0 0}
.reading dd{margin:0}
@media (max-width:70rem){
 .page{display:block;max-width:54rem}
 nav{position:static;max-height:none;margin:1.25rem 0 0}
 nav ul{display:flex;flex-wrap:wrap;gap:0 1.4rem}
}
@media screen and (max-width:56rem){
 .mid .q{display:block;margin:0;min-width:0!important;text-align:right}
 .mid thead .n[style]{padding-right:.6rem}
}
@media screen and (max-width:40rem){
 .reading{display:block}
 .reading dt{margin-top:.7rem}
 .q{display:block;margin:0;min-width:0!important;text-align:right}
 thead .n[style]{padding-right:.6rem}
 .page{padding:1.25rem 1rem 3rem}
 h2{font-size:1.3rem}
 .headlines{grid-template-columns:minmax(0,1fr)}
 .facts th{width:9rem}
}
@media (forced-colors:active){
 .plot text,.plot .what,.plot .label{fill:CanvasText}
 .line,.axis,.leader,.mark .open{stroke:CanvasText}
 .mark{fill:CanvasText}
 .grid{stroke:GrayText}
}
@page{margin:16mm 15mm}
@media print{
 html{font-size:10.5pt}
 body{font-size:1rem;line-height:1.45}
 .page{display:block;max-width:none;padding:0}
 nav,.skip,details{display:none}
 section{margin-top:2.2rem}
 h2{font-size:1.3rem}
 h2,h3,.method,.reading dt,caption,figcaption{break-after:avoid;page-break-after:avoid}
 p,dd,li{break-inside:avoid;orphans:3;widows:3}
 table{font-size:8.5pt;line-height:1.3}
 .wide{font-size:8pt}
 th,td{padding-top:.2rem;padding-bottom:.2rem}
 .facts th,.facts td{padding-top:.12rem;padding-bottom:.12rem}
 thead{display:table-header-group}
 .block,figure,table,tr,svg,.headlines>li{break-inside:avoid;page-break-inside:avoid}
 .scroll{overflow:visible}
 .block,figure{margin-top:1.4rem}
 .plot{min-width:0;max-width:170mm}
 .headlines{grid-template-columns:1fr 1fr;gap:0 2rem}
 a{color:inherit;text-decoration:none}
}
"""

STYLE = (
    f":root{{color-scheme:light dark;{variables(LIGHT)}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}"
    f"{SLOT_RULES}{PART_RULES}{RULES}"
)
