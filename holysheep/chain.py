"""Steps that build on each other: each asks a model, and a failed one does not end the chain.

What a step sends depends on its ``context``:

``accumulate``  the conversation so far (each answered step's message and answer), then its prompt;
``previous``    the last good answer, then its prompt;
``none``        its prompt alone.

The first step's message is the query and its prompt. Prompts are templates over ``query``,
``previous`` (the last good answer) and ``steps.NAME``; one that places the query or the previous
answer itself does not get it a second time. A failed step is recorded and leaves nothing behind:
the next one goes on from the last good answer, or from the query while there is none.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from holysheep.engine import Engine
from holysheep.errors import HolySheepError, InputError
from holysheep.ledger import Invocation
from holysheep.params import ChainParams, Step
from holysheep.ports import Clock
from holysheep.pricing import total_cost
from holysheep.result import ChatResult, usd_number
from holysheep.template import Template
from holysheep.types import Delta, JsonObject

_NAMES = frozenset({"query", "previous", "steps"})


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step: an answer, an error, or ``skipped`` (it was not asked)."""

    name: str
    result: ChatResult | None = None
    error: HolySheepError | None = None
    skipped: str = ""

    def to_json(self) -> JsonObject:
        """As a JSON object; money as a number."""
        if self.result is not None:
            return {
                "name": self.name,
                "output": self.result.text,
                "latency_ms": self.result.latency_ms,
                "model": self.result.model_used,
                "tokens_used": self.result.tokens_used,
                "cost_usd": usd_number(self.result.cost_usd),
                "cached": self.result.cached,
            }
        if self.error is not None:
            return {
                "name": self.name,
                "error": self.error.message,
                "error_type": self.error.error_type,
            }
        return {"name": self.name, "error": self.skipped, "error_type": "skipped"}


@dataclass(frozen=True, slots=True)
class _Planned:
    """A step that is ready to be asked."""

    step: Step
    name: str
    template: Template

    def places(self, name: str) -> bool:
        return name in self.template.variables


class Chain:
    """One run of a chain. Iterate it for what its last step says, as that arrives.

    ``results`` holds what became of each step when it has ended. Raises ``InputError`` for steps
    that cannot be asked, before anything is sent.
    """

    def __init__(
        self,
        engine: Engine,
        params: ChainParams,
        *,
        clock: Clock,
        app_id: str | None = None,
        user_id: str | None = None,
        started_s: float | None = None,
        invocation: Invocation | None = None,
    ) -> None:
        self.results: list[StepResult] = []
        self._engine = engine
        self._params = params
        self._clock = clock
        self._app_id = app_id
        self._user_id = user_id
        self._invocation = invocation or engine.local
        self._started_s = clock.monotonic() if started_s is None else started_s
        self._planned = _plan(params.steps)
        self._turns: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Delta]:
        """The pieces of the last step's answer. A step's failure is in ``results``, not raised."""
        stopped_by = ""
        for number, planned in enumerate(self._planned):
            if stopped_by:
                why = f"Not asked: step {stopped_by!r} failed before it."
                self.results.append(StepResult(planned.name, skipped=why))
                continue
            is_last = number == len(self._planned) - 1
            try:
                result = yield from self._ask(planned, is_last=is_last)
            except HolySheepError as error:
                self.results.append(StepResult(planned.name, error=error))
                on_error = planned.step.on_error or self._params.on_step_error
                stopped_by = planned.name if on_error == "stop" else ""
            else:
                self.results.append(StepResult(planned.name, result=result))

    @property
    def answered(self) -> list[ChatResult]:
        """The answers of the steps that have one, in order."""
        return [step.result for step in self.results if step.result is not None]

    @property
    def failed(self) -> list[StepResult]:
        """The steps that were asked and have no answer."""
        return [step for step in self.results if step.error is not None]

    @property
    def final(self) -> str:
        """The last good answer, or nothing."""
        answered = self.answered
        return answered[-1].text if answered else ""

    @property
    def status(self) -> str:
        """``ok`` if every step was answered, ``partial`` if some were, ``error`` if none was."""
        if not self.answered:
            return "error"
        return "ok" if len(self.answered) == len(self._planned) else "partial"

    @property
    def tokens_used(self) -> int:
        """Tokens of all answers."""
        return sum(result.tokens_used for result in self.answered)

    @property
    def cost_usd(self) -> Decimal | None:
        """What the answered steps have cost; ``None`` where one has no known price."""
        return total_cost(result.cost_usd for result in self.answered)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the chain was begun."""
        return self._clock.monotonic() - self._started_s

    def rest_of_text(self, shown: str) -> str:
        """What is to follow ``shown``, the pieces that came, so that the last good answer is told.

        Nothing where the last step was answered: its pieces are that answer.
        """
        last = self.results[-1]
        if last.result is not None:
            return ""
        if not shown or last.error is None:
            return self.final
        return (
            f"\n\n*The last step broke off: {last.error.message} The last complete answer:*\n\n"
            f"{self.final}"
        )

    def raise_if_nothing_was_answered(self) -> None:
        """Raise the first step's failure, told as that of the chain, if there is no answer."""
        if self.answered:
            return
        first = self.failed[0]
        if first.error is None:
            raise RuntimeError("a failed step without an error")
        raise first.error.copy(
            f"No step was answered ({len(self.failed)} of {len(self.results)} failed)."
            f" Step {first.name!r}: {first.error.message}"
        )

    def _ask(self, planned: _Planned, *, is_last: bool) -> Generator[Delta, None, ChatResult]:
        prompt = self._message(planned)
        params = self._params.chat(planned.step)
        system = planned.step.system or self._params.system_prompt
        messages: list[JsonObject] = [{"role": "system", "content": system}] if system else []
        if planned.step.context == "accumulate":
            for said, answered in self._turns:
                messages.append({"role": "user", "content": said})
                messages.append({"role": "assistant", "content": answered})
        messages.append({"role": "user", "content": prompt})
        answer = self._engine.ask(
            params.request(messages),
            params.policy(app_id=self._app_id, user_id=self._user_id),
            timeout_s=self._started_s + self._params.timeout_s - self._clock.monotonic(),
            stream=is_last,
            shows_reasoning=False,
            invocation=self._invocation,
        )
        for delta in answer:
            if is_last:
                yield delta
        self._turns.append((prompt, answer.result.text))
        return answer.result

    def _message(self, planned: _Planned) -> str:
        """What a step says to the model."""
        query, context = self._params.query, planned.step.context
        previous = self._turns[-1][1] if self._turns else ""
        outputs = {done.name: done.result.text if done.result else "" for done in self.results}
        prompt = planned.template.render({"query": query, "previous": previous, "steps": outputs})
        is_first = not self.results
        lead = ""
        if not self._turns and (is_first or context != "none"):
            lead = "" if planned.places("query") else query
        elif context == "previous":
            lead = "" if planned.places("previous") else previous
        message = "\n\n".join(part for part in (lead, prompt) if part.strip())
        if not message.strip():
            raise InputError(f"The prompt of step {planned.name!r} is empty.")
        return message


def _plan(steps: Sequence[Step]) -> list[_Planned]:
    """The steps with their names and templates. Raises ``InputError``."""
    planned: list[_Planned] = []
    earlier: list[str] = []
    names = [step.name.strip() or f"step_{number}" for number, step in enumerate(steps)]
    for number, (step, name) in enumerate(zip(steps, names, strict=True)):
        if name in earlier:
            raise InputError(f"steps {number}: the name {name!r} is given twice.")
        if number and not step.prompt.strip() and step.context != "previous":
            raise InputError(f"steps {number}: a step with context {step.context} needs a prompt.")
        template = Template(step.prompt, f"steps {number}: prompt")
        unknown = sorted(template.variables - _NAMES)
        if unknown:
            raise InputError(
                f"steps {number}: prompt uses {', '.join(unknown)}; there are query, previous and"
                " steps.NAME."
            )
        missing = sorted(str(used) for used in template.members_of("steps") - set(earlier))
        if missing:
            known = ", ".join(earlier) or "none"
            raise InputError(
                f"steps {number}: prompt uses steps.{missing[0]}, which is no earlier step."
                f" Earlier steps: {known}."
            )
        planned.append(_Planned(step, name, template))
        earlier.append(name)
    return planned
