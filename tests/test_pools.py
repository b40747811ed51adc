"""Pools and schedulers of other people: their workers, threads or processes, share a session's token."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor

from finapi_session import FileStore, FinapiSession
from finapi_session.testing import Sandbox

from .herd import CALLS, ECHO

WORKERS, JOBS = 3, 12


def call(session: FinapiSession) -> int:
    """Do what a job does."""
    return session.get(ECHO).status_code


def test_joblib(sandbox: Sandbox, tmp_path: Path) -> None:
    """A session goes pickled to joblib's processes, which make one token call, and one more after a revocation."""
    session = sandbox.session("alice", store=FileStore(tmp_path / "tokens"))
    try:
        for calls in (1, 2):
            assert Parallel(n_jobs=WORKERS)(delayed(call)(session) for _ in range(JOBS)) == [200] * JOBS
            assert sandbox.count(CALLS) == calls
            sandbox.revoke_tokens("alice")
    finally:
        get_reusable_executor().shutdown(wait=True)


def test_apscheduler(sandbox: Sandbox) -> None:
    """The jobs of a scheduler, which are due in the same moment, make one token call on one session."""
    session, done = sandbox.session("alice"), [Future[int]() for _ in range(JOBS)]
    scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(WORKERS)}, timezone="UTC")
    for future in done:
        scheduler.add_job(lambda future=future: future.set_result(call(session)))
    scheduler.start()
    try:
        assert [future.result(20) for future in done] == [200] * JOBS
    finally:
        scheduler.shutdown(wait=True)
    assert sandbox.count(CALLS) == 1
