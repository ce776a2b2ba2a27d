"""The result of a race as Markdown: everything for bench/results/, and the table that the README shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_cpullm.benchmark.engines.roster import OURS, STOCK
from torch_cpullm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from torch_cpullm.benchmark.result import Result
    from torch_cpullm.benchmark.standing import Entry, Standing

START, END = "<!-- torch-cpullm bench: start -->", "<!-- torch-cpullm bench: end -->"


def markdown(result: Result) -> str:
    """The whole report."""
    limits = result.roofline
    lines = [
        f"# {result.shape}: generate() and its peers, {result.threads} threads",
        "",
        f"{result.when}, `torch-cpullm bench --shape {result.shape}`; random weights, the same for all;",
        "medians of laps taken by turns, in the placement of the virtual CPUs that most laps had.",
        "",
        f"Limits: {limits.read_bandwidth / 1e9:.0f} GB/s read; {limits.f32 / 1e12:.2f} TFLOP/s f32, "
        f"{limits.bf16 / 1e12:.2f} bf16, {limits.int8 / 1e12:.2f} TOP/s int8; AMX {limits.amx_bf16 / 1e12:.2f} and "
        f"{limits.amx_int8 / 1e12:.2f}.",
        "",
        "0 laps: it had none in that placement, and its figures are of the others.",
        "",
        *_loading(result.entries),
    ]
    for name, reason in result.fallen.items():
        lines += ["", f"{name} did not finish: {reason}"]
    for work in dict.fromkeys(one.work for one in result.standings):
        here = [one for one in result.standings if one.work == work]
        share = "of the read bandwidth" if work.kind == "decode" else "of the peak"
        lines += [
            "",
            f"## {work.name}",
            "",
            f"| | tokens/s | against stock | p50 | p90 | p99 | {share} | laps |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(one, _stock(here)) for one in here]
    return "\n".join([*lines, "", "```", result.info, "```", ""])


def _loading(entries: dict[str, Entry]) -> list[str]:
    return [
        "| | weights | load | most memory |",
        "|---|---|---|---|",
        *(
            f"| {name} | {one.weight_bytes / 1e9:.2f} GB | {one.load_s:.2f} s | {one.peak_bytes / 1e9:.2f} GB |"
            for name, one in entries.items()
        ),
    ]


def _stock(here: list[Standing]) -> Standing | None:
    return next((one for one in here if one.contender.startswith(STOCK)), None)


def _row(one: Standing, stock: Standing | None) -> str:
    ratio = "" if stock is None else f"{one.tokens_s / stock.tokens_s:.2f}x"
    times = " | ".join(f"{1e3 * second:.1f} ms" for second in (one.p50_s, one.p90_s, one.p99_s))
    name = f"**{one.contender}**" if one.contender.startswith(OURS) else one.contender
    return f"| {name} | {_number(one.tokens_s)} | {ratio} | {times} | {one.share:.0%} | {one.laps} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def short_table(result: Result) -> str:
    """Prefill of 512 tokens, decode after 512, and batches, one row a contender."""
    works = [
        work
        for work in dict.fromkeys(one.work for one in result.standings)
        if (work.kind, work.depth, work.tokens) == ("prefill", 0, 512) or (work.kind, work.depth) == ("decode", 512)
    ]
    found = {(one.contender, one.work): one for one in result.standings}
    lines = [
        f"{result.shape}, tokens/s | " + " | ".join(work.name for work in works) + " | memory | load",
        "---|" * (len(works) + 2) + "---",
    ]
    for name, entry in result.entries.items():
        cells = []
        for work in works:
            one = found.get((name, work))
            share = f" ({one.share:.0%})" if one and work.kind == "decode" else ""
            cells.append(f"{_number(one.tokens_s)}{share}" if one else "")
        shown = f"**{name}**" if name.startswith(OURS) else name
        lines.append(" | ".join([shown, *cells, f"{entry.peak_bytes / 1e9:.1f} GB", f"{entry.load_s:.1f} s"]))
    return "\n".join(f"| {line} |" for line in lines)


def put_into(readme: Path, results: list[Result]) -> None:
    """Replace what stands between the two marks by the tables of `results`.

    Raises:
        ConfigError: the file is not there, or has no marks.
    """
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if START not in text or END not in text.split(START, 1)[1]:
        raise ConfigError(f"readme: expected a file with the lines {START} and {END}, got '{readme}'")
    before, rest = text.split(START, 1)
    _, after = rest.split(END, 1)
    tables = "\n\n".join(short_table(result) for result in results)
    readme.write_text(f"{before}{START}\n\n{tables}\n\n{END}{after}", encoding="utf-8")
