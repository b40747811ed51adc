"""The protocol of several processes on one store, driven through every order of events against a model of finAPI.

The model issues numbered tokens, so that it can tell which are alive, which a store may hold, and what was lost.
Processes are sources with a ledger of their own; one may be killed between any two of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from freezegun import freeze_time
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from finapi_session.cell import Cells
from finapi_session.envelope import unverified
from finapi_session.environment import SANDBOX
from finapi_session.errors import (
    InvalidGrantError,
    TokenEndpointError,
    TokenError,
)
from finapi_session.events import Journal
from finapi_session.fallback import Fallback
from finapi_session.identity import Credentials, Identity
from finapi_session.knowledge import NOTHING, Knowledge
from finapi_session.source import TokenSource
from finapi_session.stores.memory import MemoryStore
from finapi_session.tokens import Token

LIFETIME = 600


class Killed(BaseException):
    """A process died here."""


class Fate:
    """Kills the process at work after so many more steps."""

    def __init__(self) -> None:
        self.steps: int | None = None

    def step(self) -> None:
        """One step of the process at work."""
        if self.steps is not None:
            self.steps -= 1
            if self.steps < 0:
                raise Killed


class MortalStore(MemoryStore):
    """A store on which a process may die before and after each operation, and which may fail."""

    def __init__(self, fate: Fate) -> None:
        super().__init__()
        self.fate = fate
        self.failing = False

    def get(self, key: str) -> str | None:
        """Read, or fail, or die."""
        self._suffer()
        return super().get(key)

    def set(self, key: str, value: str) -> None:
        """Write, or fail, or die before or after."""
        self._suffer()
        super().set(key, value)
        self.fate.step()

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Lock, or fail, or die with the lock, which frees it."""
        self._suffer()
        with super().lock(key):
            yield

    def _suffer(self) -> None:
        self.fate.step()
        if self.failing:
            raise OSError("the store is down")


class Finapi:
    """finAPI's rules on tokens, without HTTP."""

    def __init__(self, sticky: bool, killing: bool, rotating: bool) -> None:
        self.sticky, self.killing, self.rotating = sticky, killing, rotating
        self.now = 0.0
        self.password = "right"
        self.issued = 0
        self.alive: dict[str, float] = {}
        self.refresh_tokens: set[str] = set()
        self.calls: list[tuple[str, bool]] = []
        self.refused: list[str] = []
        self.failing = 0

    def issue(self) -> str:
        """Make a new access token."""
        self.issued += 1
        token = f"A{self.issued}"
        self.alive[token] = self.now + LIFETIME
        return token

    def living(self) -> list[str]:
        """Return the access tokens that are good now."""
        return [token for token, expires_at in self.alive.items() if self.now < expires_at]

    def kill(self) -> None:
        """Kill every access token."""
        self.alive.clear()

    def ask(self, credentials: Credentials, refresh_token: str | None) -> Token:
        """Answer a token call."""
        if self.failing:
            self.failing -= 1
            self.calls.append(("failed", False))
            raise TokenEndpointError("down", status=503)
        if refresh_token is not None:
            return self.refresh(refresh_token)
        return self.log_in(credentials.password)

    def refresh(self, refresh_token: str) -> Token:
        """Answer a refresh grant."""
        if refresh_token not in self.refresh_tokens:
            self.calls.append(("refresh", False))
            raise InvalidGrantError("refresh token", status=400)
        self.calls.append(("refresh", True))
        if self.killing:
            self.kill()
        if self.rotating:
            self.refresh_tokens = {f"R{self.issued + 1}"}
        return self.answer(self.issue())

    def log_in(self, password: str | None) -> Token:
        """Answer a password grant."""
        if password != self.password:
            self.calls.append(("password", False))
            self.refused.append(str(password))
            raise InvalidGrantError("password", status=400)
        self.calls.append(("password", True))
        if not self.refresh_tokens:
            self.refresh_tokens = {f"R{self.issued + 1}"}
        living = self.living()
        return self.answer(living[-1] if self.sticky and living else self.issue())

    def answer(self, access_token: str) -> Token:
        """Return the token as finAPI tells it."""
        seconds = int(self.alive[access_token] - self.now)
        answer = {"access_token": access_token, "refresh_token": max(self.refresh_tokens), "expires_in": seconds}
        return Token.from_dict(answer, issued_at=_wall())


def _wall() -> float:
    import time

    return time.time()


class Endpoint:
    """What a source needs of an endpoint, with a death possible before and after the answer."""

    environment = SANDBOX

    def __init__(self, finapi: Finapi, fate: Fate) -> None:
        self.finapi, self.fate = finapi, fate
        self.died_with_an_answer = False

    def fetch(
        self,
        credentials: Credentials,
        renewed: Token | None = None,
        *,
        patient: bool = True,
        before_each_try: Callable[[], object] = bool,
        why: str | None = None,
    ) -> Token:
        """Ask the model."""
        before_each_try()
        self.fate.step()
        error: TokenError | None = None
        token: Token | None = None
        try:
            token = self.finapi.ask(credentials, renewed.refresh_token if renewed else None)
        except TokenError as refusal:
            error = refusal
        self.died_with_an_answer = True
        self.fate.step()
        if error is not None:
            raise error
        assert token is not None
        return token


class Processes(RuleBasedStateMachine):
    """Three processes with a user's token on one store."""

    @initialize(sticky=st.booleans(), killing=st.booleans(), rotating=st.booleans())
    def start(self, sticky: bool, killing: bool, rotating: bool) -> None:
        """Start finAPI in one of its readings, and three processes."""
        self.freezer = freeze_time("2026-01-01")
        self.clock = self.freezer.start()
        self.fate = Fate()
        self.finapi = Finapi(sticky, killing, rotating)
        self.store = MortalStore(self.fate)
        self.endpoint = Endpoint(self.finapi, self.fate)
        self.password = "right"
        self.sources = [self.source() for _ in range(3)]
        self.used = 0
        self.lossy = False
        self.rejections: set[tuple[int, str]] = set()

    def source(self) -> TokenSource:
        """A new process: a source, with a ledger of its own, that asks for the password as it is now."""
        journal = Journal(SANDBOX.base_url)
        identity = Identity("id", "secret", "alice", lambda: self.password)
        cells = Cells(Fallback(self.store, journal))
        return TokenSource(identity, self.endpoint, cells, journal)  # type: ignore[arg-type]

    def run(self, number: int, call: Any) -> Any:
        """Let a process make a call, and replace it if it dies of it."""
        self.endpoint.died_with_an_answer = False
        try:
            return call(self.sources[number])
        except Killed:
            self.lossy |= self.endpoint.died_with_an_answer
            self.sources[number] = self.source()
            self.rejections = {(process, token) for process, token in self.rejections if process != number}
            return None
        except TokenError as error:
            return error
        finally:
            self.fate.steps = None

    @rule(number=st.integers(0, 2), steps=st.none() | st.integers(0, 8))
    def call(self, number: int, steps: int | None) -> None:
        """A process makes an API call: it takes a token and, on a 401, another one, once, as BearerAuth does."""
        before = asked = len(self.finapi.calls)
        source = self.sources[number]
        self.fate.steps = steps
        token = self.run(number, TokenSource.token)
        if isinstance(token, Token) and not self.lives(token):
            rejected, asked = token.authorization, len(self.finapi.calls)
            self.rejections.add((number, token.access_token))
            better = not self.lossy and steps is None and self.better_in_store(token)
            self.fate.steps = steps
            token = self.run(number, lambda source: source.renew(rejected))
            assert not better or len(self.finapi.calls) == asked, "a sibling had renewed already"
            if isinstance(token, Token):
                (source.accepted if self.lives(token) else source.rejected)(token.authorization)
        made = self.finapi.calls[before:]
        if isinstance(token, Token):
            self.used = max(self.used, int(token.access_token[1:]))
            # A token taken from the store may have died there; the call after it then asks.
            assert self.lives(token) or not self.finapi.calls[asked:], "a call failed although finAPI was asked"
        assert sum(good for _, good in made) <= 1, f"more than one renewal for one call: {made}"
        assert len(made) <= 3, f"too many token calls for one call: {made}"

    def lives(self, token: Token) -> bool:
        """Tell whether the API takes the token."""
        return token.access_token in self.finapi.living()

    @rule(number=st.integers(0, 2))
    def a_sibling_has_renewed(self, number: int) -> None:
        """What one process has stored, another takes without asking, unless it has seen that token rejected."""
        stored = self.fresh_in_store()
        fresh = stored is not None and (number, stored.access_token) not in self.rejections
        before = len(self.finapi.calls)
        token = self.run(number, TokenSource.token)
        if fresh and isinstance(token, Token) and self.lives(token):
            assert len(self.finapi.calls) == before

    @rule(seconds=st.sampled_from([1, 30, 500, 545, 599, 601, 5000]))
    def time_passes(self, seconds: int) -> None:
        """Both clocks go on."""
        self.clock.tick(seconds)
        self.finapi.now += seconds

    @rule(seconds=st.sampled_from([-86400, -7200, 7200, 86400]))
    def clock_steps(self, seconds: int) -> None:
        """Our clock is set, finAPI's goes on."""
        self.clock.tick(seconds)

    @rule()
    def tokens_die(self) -> None:
        """Access tokens are revoked behind our back."""
        self.finapi.kill()

    @rule()
    def refresh_tokens_die(self) -> None:
        """Refresh tokens run out."""
        self.finapi.refresh_tokens.clear()

    @rule(times=st.integers(1, 3))
    def finapi_fails(self, times: int) -> None:
        """finAPI is down for the next calls."""
        self.finapi.failing = times

    @rule()
    def store_fails(self) -> None:
        """The store goes down, or comes back."""
        self.store.failing = not self.store.failing
        self.lossy = True

    @rule(password=st.sampled_from(["right", "wrong", "older"]))
    def password_changes_here(self, password: str) -> None:
        """The processes are given another password."""
        self.password = password

    def fresh_in_store(self) -> Token | None:
        """Return the token in the store if it is good for now, for this password."""
        if self.store.failing:
            return None
        grant = self.stored().usable(self.credentials().fingerprint, _wall())
        return grant.token if grant is not None and _wall() < grant.fresh_until(60) else None

    def stored(self) -> Knowledge:
        """Return what the store has."""
        text = MemoryStore.get(self.store, self.key())
        return NOTHING if text is None else unverified(text)

    def better_in_store(self, rejected: Token) -> bool:
        """Tell whether the store holds a token that serves instead of the rejected one."""
        stored = self.fresh_in_store()
        return stored is not None and self.lives(stored) and stored.access_token != rejected.access_token

    def credentials(self) -> Credentials:
        """The credentials of the moment."""
        return Credentials("id", "secret", "alice", self.password)

    def key(self) -> str:
        """The user's key in the store."""
        return self.credentials().key(SANDBOX.token_url)

    @invariant()
    def no_refused_password_twice(self) -> None:
        """A refused password is sent again only if whoever knew of the refusal died before he could tell."""
        if not getattr(self, "lossy", True):
            assert len(self.finapi.refused) == len(set(self.finapi.refused)), self.finapi.refused

    @invariant()
    def no_refresh_token_lost(self) -> None:
        """What finAPI still honours is in the store, or with a process."""
        if getattr(self, "lossy", True) or not self.finapi.refresh_tokens:
            return
        known = {source.held.refresh_token for source in self.sources if source.held}
        known |= {grant.token.refresh_token for grant in self.stored().grants}
        assert self.finapi.refresh_tokens <= known

    @invariant()
    def nothing_older_stored(self) -> None:
        """The store never holds a token older than one that was used."""
        if getattr(self, "lossy", True):
            return
        grants = self.stored().grants
        if grants:
            assert max(int(grant.token.access_token[1:]) for grant in grants) >= self.used

    def teardown(self) -> None:
        """Give the clock back."""
        if hasattr(self, "freezer"):
            self.freezer.stop()


class WithoutPassword(Processes):
    """The same of a user whose password nobody has: each process starts with the token of one login."""

    seed: Token | None = None

    @initialize(sticky=st.booleans(), killing=st.booleans(), rotating=st.booleans())
    def start(self, sticky: bool, killing: bool, rotating: bool) -> None:
        """Start finAPI in one of its readings, log in, and start three processes."""
        super().start(sticky, killing, rotating)
        self.seed = self.finapi.log_in("right")
        self.finapi.calls.clear()
        self.sources = [self.source() for _ in range(3)]

    def source(self) -> TokenSource:
        """A new process: a source, with a ledger of its own, that is given the token."""
        journal, identity = Journal(SANDBOX.base_url), Identity("id", "secret", "alice", None)
        cells = Cells(Fallback(self.store, journal))
        return TokenSource(identity, self.endpoint, cells, journal, token=self.seed)  # type: ignore[arg-type]

    def credentials(self) -> Credentials:
        """The credentials, without a password."""
        return Credentials("id", "secret", "alice", None)

    @invariant()
    def nothing_older_stored(self) -> None:
        """The store never holds a token older than one that was used, as long as that can be renewed."""
        if getattr(self, "finapi", None) and self.finapi.refresh_tokens:
            super().nothing_older_stored()


for machine in (Processes, WithoutPassword):
    busy = settings(max_examples=150, stateful_step_count=40, suppress_health_check=list(HealthCheck))
    machine.TestCase.settings = busy
TestProcesses = Processes.TestCase
TestWithoutPassword = WithoutPassword.TestCase
