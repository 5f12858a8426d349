"""Write a teacher's traces: `python -m jaxs1.traces --model NAME --endpoint.url URL --questions F`.

Pipeline: questions -> requests -> answers on disk -> checks -> training data and report. The output
folder contains

    traces.jsonl    kept traces in the columns of s1K-1.1, ready for jaxs1.train and jaxs1.curate
    dropped.jsonl   all other answers, each with its reason
    report.md       lengths, shares of right answers, cost; report.png, report.json
    answers.jsonl   every answer as it came; an interrupted run continues behind it
    config.yaml     the settings; --config reads them back
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxs1.config import UserError, parse, run_command, to_yaml
from jaxs1.distillation.account import Account
from jaxs1.distillation.answers import Answers, Key
from jaxs1.distillation.collect import Failures, collect, usage_line
from jaxs1.distillation.config import TracesConfig
from jaxs1.distillation.output import write_output
from jaxs1.distillation.questions import read_questions
from jaxs1.distillation.report import write_report
from jaxs1.distillation.teachers import make_job, open_teacher, settings_of
from jaxs1.storage import check_output, write_text


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status: 1 if it ended before all answers."""
    return traces(parse(TracesConfig, argv, command="python -m jaxs1.traces"))


def traces(config: TracesConfig) -> int:
    """Request what is missing, check all answers, write traces and report.

    Returns:
        0; 1 if `max_cost` ended the run before all answers were there

    Raises:
        UserError: any error that the user can fix; answers that came until then are kept.
    """
    config.endpoint.check_key("endpoint")
    kind, questions = read_questions(config.questions, config.data, config.limit)
    check_output(config.output, folder=True)
    answers = Answers(Path(config.output), settings_of(config))
    try:
        account = Account(config.price, config.max_tokens, config.max_cost)
        wanted = {
            Key(q.key, sample): q.text
            for q in questions
            if q.repeats is None
            for sample in range(config.n)
        }
        for stored in answers.stored.values():
            account.add(stored)
        failures = _request(config, wanted, answers, account)
        counts = write_output(config, kind, questions, answers, failures.reasons)
    finally:
        answers.close()
    write_text(Path(config.output) / "config.yaml", to_yaml(config))
    files = write_report(config, counts, account)
    print(usage_line(account))
    print(f"wrote {config.output}: {counts.total.kept:,} traces; {', '.join(files)}")
    left = sum(key not in answers.stored and key not in failures.reasons for key in wanted)
    if left:
        print(
            f"max_cost={config.max_cost}: {left:,} of {len(wanted):,} samples were not requested, "
            "since their cost could exceed it; raise it and repeat the command to continue"
        )
    return 1 if left else 0


def _request(
    config: TracesConfig, wanted: Mapping[Key, str], answers: Answers, account: Account
) -> Failures:
    """Request all wanted samples that are not stored, given with the texts of their questions."""
    jobs = [make_job(config, text, k) for k, text in wanted.items() if k not in answers.stored]
    stored = len(answers.stored)
    print(f"{len(jobs):,} samples to request, {stored:,} stored already", flush=True)
    if not jobs:
        return Failures(patience=0)
    failures = collect(open_teacher(config), jobs, answers, account)
    if failures.reasons and (failures.fatal or not config.allow_failed):
        reason = failures.fatal or next(iter(failures.reasons.values()))
        drop = "" if failures.fatal else ", or --allow_failed true to finish without them"
        raise UserError(
            f"model={config.model}: {len(failures.reasons):,} requests failed ({reason}); all "
            f"{len(answers.stored):,} answers are kept in {config.output}; repeat the command to "
            f"request the others{drop}"
        )
    return failures


if __name__ == "__main__":
    run_command(main)
