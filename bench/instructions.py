"""How many instructions does a datagram take in user space, and did a change make it more?

    python bench/instructions.py [--tool callgrind|perf] [--json] [--check] [--write]

Wants valgrind, or a processor whose counters can be had. `--check` exits with 1 where a call takes more than
bench/instructions.json allows; where that has no figures of a build such as this one it says so, and exits with 0.
`--write` puts this build's figures there.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from fastsock.bench import instructions
from fastsock.bench.environment import describe_machine
from fastsock.cli.bench import print_answers

BASELINE = Path(__file__).with_name("instructions.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", choices=["callgrind", "perf"], help="what counts (default: callgrind if it is there)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a call takes more than before")
    parser.add_argument("--write", action="store_true", help="make these figures the baseline of this build")
    args = parser.parse_args()
    tool, why = (args.tool, "") if args.tool else instructions.find_tool()
    if not tool:
        print(why, file=sys.stderr)
        return 1
    if args.write and tool != "callgrind":
        parser.error("the baseline is callgrind's")
    baseline = json.loads(BASELINE.read_text())
    build = instructions.this_build()
    counts = instructions.count(tool)
    if tool == "callgrind":
        verdict = instructions.compare(counts, build, baseline)
    else:
        verdict = instructions.Verdict([], ["not compared: the baseline is callgrind's"], {})
    answer = instructions.answer(tool, counts, baseline["reasons"], verdict.before)
    if args.json:
        report = {"build": asdict(build), "more": verdict.more, "notes": verdict.notes, "answers": [answer.as_json()]}
        print(json.dumps(report))
    else:
        print_answers([answer], describe_machine())
        for line in (*(f"more: {line}" for line in verdict.more), *verdict.notes):
            print(line)
    if args.write:
        BASELINE.write_text(json.dumps(instructions.written(counts, build, baseline), indent=1) + "\n")
        return 0
    return int(args.check and bool(verdict.more))


if __name__ == "__main__":
    sys.exit(main())
