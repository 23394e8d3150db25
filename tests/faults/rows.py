"""The rows of the fault table that are told as stories over a constant load, with their bars. Pure."""

from __future__ import annotations

from dataclasses import replace

from . import figures
from .story import EndLoad, Freeze, Hold, Kill, Load, Measure, Restart, Story, Terminate, Wait

SHORT = Load(streams=50, prompt_tokens=(40, 300), max_tokens=(16, 96))
LONG = Load(streams=50, prompt_tokens=(700, 1400), max_tokens=(8, 32))
ANSWERS = Load(streams=50, prompt_tokens=(40, 200), max_tokens=(150, 300))

ALWAYS = (
    Measure("requests", "requests", figures.requests),
    Measure("under way at the fault", "requests", figures.in_flight),
    Measure("violations of I1, I2, I3, X1, X4", "count", figures.violations, 0),
    Measure("wrong tokens", "requests", figures.wrong_tokens, 0),
    Measure("leaks", "processes", figures.leaks, 0),
)
NONE_FAILED = Measure("failed", "requests", figures.failed, 0)
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
                Measure("added TTFT", "s", figures.added_ttft_s, 2.0),
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
            (Wait(0.5, 1.5), Kill("prefill"), Restart(), Wait(2.0, 3.0), EndLoad()),
            (*ALWAYS, NONE_FAILED),
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
            (*ALWAYS, Measure("blocks free within", "s", figures.freed_s, 10.0)),
            LONG,
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
            ANSWERS,
            worker={"drain_s": 1.0},
        ),
        Story(
            "10p",
            "SIGSTOP of prefill for 8 s",
            (Wait(0.5, 2.5), Freeze("prefill", 8.0), Wait(1.0, 2.0), EndLoad()),
            (*ALWAYS, NONE_FAILED, DETECT, Measure("told within", "s", figures.settled_s)),
            SHORT,
        ),
        Story(
            "10d",
            "SIGSTOP of decode for 8 s",
            (Wait(0.5, 2.5), Freeze("decode", 8.0), Wait(1.0, 2.0), EndLoad()),
            (*ALWAYS, DETECT, Measure("told within", "s", figures.settled_s), decode_dies[0]),
            ANSWERS,
            may_break=not resume,
        ),
        Story(
            "10g",
            "SIGSTOP of the gateway for 5 s",
            (Wait(0.5, 2.5), Freeze("gateway", 5.0), Wait(1.0, 2.0), EndLoad()),
            (*ALWAYS, NONE_FAILED),
            SHORT,
        ),
    )
