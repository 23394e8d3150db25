"""The rows of the fault table that are told as stories over a constant load, with their bars. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from . import figures
from .story import (
    Break,
    Cut,
    EndLoad,
    Freeze,
    Hold,
    Kill,
    Load,
    Measure,
    Restart,
    Serves,
    Shim,
    Starve,
    Story,
    Terminate,
    Wait,
)

SHORT = Load(streams=50, prompt_tokens=(40, 300), max_tokens=(16, 96))
LONG = Load(streams=50, prompt_tokens=(700, 1400), max_tokens=(8, 32))
MIDDLE = Load(streams=50, prompt_tokens=(300, 600), max_tokens=(4, 8))
"""Of a few chunks each, and done well within 10 s by one decode worker."""
ANSWERS = Load(streams=50, prompt_tokens=(40, 200), max_tokens=(150, 300))

ALWAYS = (
    Measure("requests", "requests", figures.requests, 1, "higher"),
    Measure("under way at the fault", "requests", figures.in_flight, 1, "higher"),
    Measure("violations of I1, I2, I3, X1, X4", "count", figures.violations, 0),
    Measure("wrong tokens", "requests", figures.wrong_tokens, 0),
    Measure("leaks", "processes", figures.leaks, 0),
)
NONE_FAILED = Measure("failed", "requests", figures.failed, 0)
BREAKS: dict[Literal["oom", "cuda", "nan"], str] = {
    "oom": "out of memory",
    "cuda": "a CUDA error",
    "nan": "logits that are not numbers",
}
CUTS: dict[str, dict[str, bool]] = {
    "both ways": {},
    "from prefill to decode": {"towards_prefill": False},
    "from decode to prefill": {"towards_decode": False},
}
DETECT = Measure("detected within", "s", figures.detect_s, 3.0)
RESUMED = (
    Measure("streams completed", "share", figures.complete_share, 1.0, "higher"),
    Measure("gap p99", "s", figures.gap_p99_s),
    Measure("gap p99 less the usual prefill", "s", figures.gap_beyond_prefill_s, 2.0),
)
REUSED = (
    Measure("prompt tokens of streams that went on", "tokens", figures.resumed_prompts, 1, "higher"),
    Measure("of these computed again", "tokens", figures.prompts_again),
    Measure("emitted tokens computed again, about", "tokens", figures.emitted_again),
)
BROKEN = (
    Measure("streams completed (no resume: explicit errors allowed)", "share", figures.complete_share),
    Measure("told within", "s", figures.settled_s, 3.0),
)


def rows(*, resume: bool) -> tuple[Story, ...]:
    """With `resume` a dead decode worker may cost no stream; without, its streams end with an explicit error."""
    decode_dies = RESUMED if resume else BROKEN
    return (
        Story(
            "1",
            "SIGKILL of prefill at any moment, short prompts",
            (Wait(0.5, 2.5), Kill("prefill"), Wait(2.0, 3.0), EndLoad()),
            (
                *ALWAYS,
                NONE_FAILED,
                Measure("usual TTFT, median", "s", figures.usual_ttft_s),
                Measure("usual TTFT, longest", "s", figures.usual_ttft_max_s),
                Measure("added TTFT", "s", figures.added_ttft_s),
                Measure("added TTFT less one usual prefill", "s", figures.added_beyond_prefill_s, 1.0),
                Measure("prompts prefilled on decode instead", "requests", figures.recomputed),
            ),
            SHORT,
        ),
        Story(
            "2",
            "SIGKILL of prefill mid-transfer, long prompts in many chunks",
            (Wait(0.5, 2.5), Kill("prefill"), Wait(2.0, 3.0), EndLoad()),
            (
                *ALWAYS,
                NONE_FAILED,
                Measure("transfers cut off", "transfers", figures.recomputed, 1, "higher"),
                Measure("noticed within", "s", figures.notice_s, 1.0),
            ),
            LONG,
            worker={"kv": {"num_blocks": 2048}},
        ),
        Story(
            "3",
            "prefill is killed and restarts on the same ports",
            (Wait(0.5, 1.5), Kill("prefill"), Restart(), Serves(), Wait(2.0, 3.0), EndLoad()),
            (
                *ALWAYS,
                NONE_FAILED,
                Measure("a new transfer from the restarted worker within", "s", figures.served_again_s, 2.0),
            ),
            SHORT,
        ),
        Story(
            "4",
            "SIGTERM of prefill with leases open",
            (Wait(0.5, 2.5), Terminate("prefill"), Wait(1.0, 2.0), EndLoad()),
            (
                *ALWAYS,
                NONE_FAILED,
                Measure("leases open at SIGTERM", "leases", figures.leases_held, 1, "higher"),
                Measure("exits other than 0", "processes", figures.bad_exits, 0),
                Measure("drained within", "s", figures.drain_s, 60.0),
            ),
            LONG,
            worker={"kv": {"num_blocks": 2048}},
        ),
        Story(
            "5",
            "SIGKILL of decode before its pulls ended",
            (Wait(0.5, 2.5), Kill("decode"), EndLoad()),
            (*ALWAYS, Measure("blocks free within, from the kill", "s", figures.freed_s, 10.0)),
            MIDDLE,
            worker={"kv": {"num_blocks": 2048}},
            may_break=not resume,
        ),
        Story(
            "6",
            "SIGKILL of decode mid-stream",
            (Wait(0.5, 3.0), Kill("decode"), Wait(2.0, 3.0), EndLoad()),
            (*ALWAYS, *decode_dies),
            ANSWERS,
            may_break=not resume,
        ),
        Story(
            "6r",
            "SIGKILL of decode when every stream has begun: what KV is used again",
            (Wait(1.0, 2.0), Hold(), Kill("decode"), EndLoad()),
            (*ALWAYS, *decode_dies, *REUSED),
            replace(ANSWERS, whole_share=0.0),
            worker={"kv": {"num_blocks": 2048}},
            may_break=not resume,
        ),
        Story(
            "7",
            "SIGKILL of decode mid-stream: log probabilities, n of 1 to 3, stop strings, seeds",
            (Wait(0.5, 3.0), Kill("decode"), Wait(2.0, 3.0), EndLoad()),
            (*ALWAYS, *decode_dies),
            replace(ANSWERS, hard=True),
            may_break=not resume,
            worker={"engine": {"max_running": 128}, "kv": {"num_blocks": 4096}},  # one has room for all the choices
        ),
        Story(
            "4d",
            "SIGTERM of decode with a budget of 1 s, less than its streams take",
            (Wait(0.5, 3.0), Terminate("decode"), Wait(1.0, 2.0), EndLoad()),
            (
                *ALWAYS,
                NONE_FAILED,
                Measure("exits other than 0", "processes", figures.bad_exits, 0),
                Measure("drained within", "s", figures.drain_s, 5.0),
                Measure("streams handed over", "requests", figures.handed_over, 1, "higher"),
            ),
            replace(ANSWERS, max_tokens=(400, 600)),
            worker={"drain_s": 1.0},
        ),
        *(
            Story(
                f"8{kind}",
                f"one step of a decode worker fails: {what}",
                (Wait(0.5, 2.5), Break(kind), Wait(1.0, 2.0), EndLoad()),
                (*ALWAYS, NONE_FAILED, Measure("requests moved by one fault", "requests", figures.moved, 1)),
                ANSWERS,
                worker={"engine": {"failure_window_s": 1.0}},  # or the rounds add up to its quarantine
                breakable=True,
            )
            for kind, what in BREAKS.items()
        ),
        Story(
            "8q",
            "every step of a decode worker fails: it quarantines itself",
            (Wait(0.5, 2.5), Break("cuda", 1_000_000, exits=True), Wait(1.0, 2.0), EndLoad()),
            (
                *ALWAYS,
                NONE_FAILED,
                Measure("exits other than 3", "processes", figures.not_quarantined, 0),
                Measure("ended itself within", "s", figures.exit_s),
                Measure("streams that went on elsewhere", "requests", figures.handed_over, 1, "higher"),
            ),
            ANSWERS,
            breakable=True,
        ),
        *(
            Story(
                f"12{number}",
                f"no packet between a prefill and a decode worker: {what}",
                (Wait(0.5, 1.5), replace(Cut("pair", 8.0), **directions), Wait(7.0, 8.0), EndLoad()),
                (
                    *ALWAYS,
                    NONE_FAILED,
                    Measure("pair set aside within", "s", figures.apart_s),
                    Measure("KV over the pair again within", "s", figures.heal_s, 5.0),
                    Measure("usual TTFT, median", "s", figures.usual_ttft_s),
                    Measure("TTFT p99, the cut in it", "s", figures.ttft_p99_s),
                    Measure("prompts prefilled on decode instead", "requests", figures.recomputed),
                ),
                SHORT,
                network=True,
            )
            for number, (what, directions) in zip("abc", CUTS.items(), strict=True)
        ),
        Story(
            "13",
            "no packet between the gateway and its workers for 9 s; requests wait 2 s",
            (Wait(0.5, 1.5), Cut("gateway", 9.0), Wait(3.0, 4.0), EndLoad()),
            (
                *ALWAYS,
                DETECT,
                Measure("refused with 503", "requests", figures.refused, 1, "higher"),
                Measure("of these without Retry-After", "requests", figures.refused_without_retry_after, 0),
                Measure("waited for it at most", "s", figures.refused_late_s, 7.0),
                Measure("held and then served", "requests", figures.held_and_served),
                Measure("served again after the heal within", "s", figures.after_heal_s, 5.0),
            ),
            SHORT,
            gateway={"queue_ttl_s": 2.0},
            network=True,
            may_break=True,
        ),
        Story(
            "15",
            "1 % loss, 50 ms jitter with reordering, 10 Mbit/s between prefill and decode",
            (Wait(6.0, 8.0), EndLoad()),
            (
                *(measure for measure in ALWAYS if "fault" not in measure.name),
                NONE_FAILED,
                Measure("TTFT, median", "s", figures.ttft_median_s),
                Measure("TTFT p99", "s", figures.ttft_p99_s),
                Measure("prompts prefilled on decode instead", "requests", figures.recomputed),
            ),
            SHORT,
            prefill=1,
            decode=1,
            network=True,
            wire=("--loss", "0.01", "--jitter", "0.05", "--rate", "10e6"),
        ),
        Story(
            "u",
            "UCX calls fail or stall at random: connection reset, endpoint timeout, I/O error, no memory",
            (Wait(0.5, 1.0), Shim(6.0), Wait(2.0, 3.0), EndLoad()),
            (
                *ALWAYS,
                NONE_FAILED,
                Measure("UCX faults injected", "calls", figures.injected, 1, "higher"),
                Measure("prompts prefilled on decode instead", "requests", figures.recomputed),
            ),
            SHORT,
            transport="ucx/tcp",
            shimmed=True,
        ),
        # A worker that has just been slow is given longer (note 0016): each round begins when the gateway has
        # forgotten the last one, after eight heartbeats.
        Story(
            "10p",
            "SIGSTOP of prefill for 8 s",
            (Wait(9.0, 11.0), Freeze("prefill", 8.0), Wait(1.0, 2.0), EndLoad()),
            (*ALWAYS, NONE_FAILED, DETECT, Measure("told within", "s", figures.settled_s)),
            SHORT,
        ),
        Story(
            "10d",
            "SIGSTOP of decode for 8 s",
            (Wait(9.0, 11.0), Freeze("decode", 8.0), Wait(1.0, 2.0), EndLoad()),
            (*ALWAYS, DETECT, Measure("told within", "s", figures.settled_s), decode_dies[0]),
            ANSWERS,
            may_break=not resume,
        ),
        Story(
            "10s",
            "the only decode worker runs for 0.4 s of every 3.4 s, for 34 s: slow, not lost for good",
            (Wait(0.5, 1.5), Starve("decode", stopped_s=3.0, running_s=0.4, times=10), Wait(1.0, 2.0), EndLoad()),
            (*ALWAYS, NONE_FAILED, Measure("times it was taken for lost", "count", figures.losses, 2)),
            replace(SHORT, streams=20),
            decode=1,
        ),
        Story(
            "10g",
            "SIGSTOP of the gateway for 5 s",
            (Wait(0.5, 2.5), Freeze("gateway", 5.0), Wait(1.0, 2.0), EndLoad()),
            (*ALWAYS, NONE_FAILED),
            SHORT,
        ),
    )
