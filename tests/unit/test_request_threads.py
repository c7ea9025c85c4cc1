"""The threads for requests to providers: how many run at once, whose they are, and how they end."""

import threading
import time
from collections.abc import Iterator

import pytest

from worker.sending.requests import ProviderAccount, RequestThreads

DEADLINE_SECONDS = 30.0


class Gate:
    """Requests that do not end until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = threading.Semaphore(0)

    def pass_with(self, answer: str) -> str:
        self.reached.release()
        assert self.opened.wait(DEADLINE_SECONDS)
        return answer

    def wait_for(self, number: int) -> None:
        """Until so many requests run."""
        for _ in range(number):
            assert self.reached.acquire(timeout=DEADLINE_SECONDS)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


@pytest.fixture
def threads(gate: Gate) -> Iterator[RequestThreads[str, str]]:
    made: RequestThreads[str, str] = RequestThreads(2)
    yield made
    gate.opened.set()
    made.close()


def answers(threads: RequestThreads[str, str]) -> list[tuple[str, str]]:
    return sorted((owner, request.result()) for owner, request in threads.collect())


def test_answers_by_owner(threads: RequestThreads[str, str]) -> None:
    """Each answer comes back once, with the owner of its request."""
    threads.submit("one", lambda: "1")
    threads.submit("two", lambda: "2")
    assert threads.wait(DEADLINE_SECONDS, for_all=True)
    assert answers(threads) == [("one", "1"), ("two", "2")]
    assert answers(threads) == []
    assert len(threads) == 0


def test_no_more_at_once_than_its_size(threads: RequestThreads[str, str], gate: Gate) -> None:
    """More requests wait for a free thread."""
    for number in range(3):
        threads.submit(f"owner {number}", lambda: gate.pass_with("done"))
    gate.wait_for(2)
    assert not gate.reached.acquire(timeout=0.05)
    assert (len(threads), threads.free) == (3, 0)
    assert sorted(threads.owners) == ["owner 0", "owner 1", "owner 2"]
    gate.opened.set()
    assert threads.wait(DEADLINE_SECONDS, for_all=True)
    assert len(answers(threads)) == 3
    assert threads.free == 2


def test_waiting_for_the_first(threads: RequestThreads[str, str], gate: Gate) -> None:
    """One that hangs does not keep the others' answers back."""
    threads.submit("slow", lambda: gate.pass_with("late"))
    threads.submit("quick", lambda: "soon")
    assert threads.wait(DEADLINE_SECONDS)
    assert answers(threads) == [("quick", "soon")]
    assert threads.owners == ["slow"]


def test_waiting_in_vain(threads: RequestThreads[str, str], gate: Gate) -> None:
    """Ends when the time is over."""
    threads.submit("slow", lambda: gate.pass_with("late"))
    began = time.monotonic()
    assert not threads.wait(0.05)
    assert time.monotonic() - began >= 0.05
    assert answers(threads) == []


def test_waiting_for_some_owners(threads: RequestThreads[str, str], gate: Gate) -> None:
    """Requests of others that hang are not waited for."""
    threads.submit("slow", lambda: gate.pass_with("late"))
    threads.submit("quick", lambda: "soon")
    assert threads.wait(DEADLINE_SECONDS, for_all=True, owners=["quick", "without a request"])
    assert ("quick", "soon") in answers(threads)
    began = time.monotonic()
    assert not threads.wait(DEADLINE_SECONDS, owners=["quick"])
    assert time.monotonic() - began < DEADLINE_SECONDS / 2


def test_an_error_comes_back(threads: RequestThreads[str, str]) -> None:
    """What a request raised is raised where its answer is read, and not before."""

    def fail() -> str:
        raise ZeroDivisionError

    threads.submit("one", fail)
    threads.wait(DEADLINE_SECONDS)
    [(owner, request)] = threads.collect()
    assert owner == "one"
    with pytest.raises(ZeroDivisionError):
        request.result()


def test_cancelling(threads: RequestThreads[str, str], gate: Gate) -> None:
    """Requests without a thread come back cancelled; those that run go on."""
    for number in range(4):
        threads.submit(f"owner {number}", lambda: gate.pass_with("done"))
    gate.wait_for(2)
    threads.cancel_waiting()
    cancelled = threads.collect()
    assert [request.cancelled() for _, request in cancelled] == [True, True]
    assert sorted(owner for owner, _ in cancelled) == ["owner 2", "owner 3"]
    gate.opened.set()
    assert threads.wait(DEADLINE_SECONDS, for_all=True)
    assert answers(threads) == [("owner 0", "done"), ("owner 1", "done")]


def test_close(gate: Gate) -> None:
    """Says whether all threads have ended; it does not wait for one that hangs."""
    idle: RequestThreads[str, str] = RequestThreads(1)
    assert idle.close()
    busy: RequestThreads[str, str] = RequestThreads(1)
    busy.submit("slow", lambda: gate.pass_with("late"))
    gate.wait_for(1)
    began = time.monotonic()
    assert not busy.close()
    assert time.monotonic() - began < DEADLINE_SECONDS / 2


def test_a_machine_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that no thread could be started for is refused, and never run later with another one."""
    threads: RequestThreads[str, str] = RequestThreads(2)
    ran: list[str] = []

    def request(name: str) -> str:
        ran.append(name)
        return name

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threads.submit("first", lambda: request("first"))
    assert len(threads) == 0
    threads.submit("second", lambda: request("second"))
    assert threads.wait(DEADLINE_SECONDS, for_all=True)
    assert [(owner, answer.result()) for owner, answer in threads.collect()] == [("second", "second")]
    assert threads.close()
    assert ran == ["second"]


class Accounts:
    """Requests through named accounts ("whatsapp one"); the providers of some of them never answer."""

    def __init__(self, gate: Gate, size: int = 4) -> None:
        self.gate = gate
        self.threads: RequestThreads[str, str] = RequestThreads(size, account, stuck_seconds=0.05)

    def submit(self, owner: str, number: int = 1, *, hangs: bool = False) -> None:
        for _ in range(number):
            self.threads.submit(owner, (lambda: self.gate.pass_with("late")) if hangs else (lambda: "soon"))

    def answered(self, number: int) -> list[str]:
        """The owners of the requests that end until so many have."""
        ended: list[str] = []
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(ended) < number:
            assert time.monotonic() < deadline, f"only {ended} were answered"
            self.threads.wait(0.01)
            ended += [owner for owner, _ in self.threads.collect()]
        return ended


def account(owner: str) -> ProviderAccount:
    kind, name = owner.split()
    return ProviderAccount(kind, name)


@pytest.fixture
def accounts(gate: Gate) -> Iterator[Accounts]:
    made = Accounts(gate)
    yield made
    gate.opened.set()
    made.threads.close()


def test_an_account_that_hangs(accounts: Accounts) -> None:
    """It gets two threads while it has not answered, and no more; others through the same provider go on."""
    accounts.submit("whatsapp one", 10, hangs=True)
    accounts.gate.wait_for(2)
    accounts.submit("whatsapp two", 10)
    assert accounts.answered(10) == ["whatsapp two"] * 10
    assert not accounts.gate.reached.acquire(timeout=0.1)
    assert accounts.threads.stuck == 2
    assert accounts.threads.only_stuck


@pytest.mark.parametrize("number", [3, 40])
def test_many_accounts_that_hang(accounts: Accounts, number: int) -> None:
    """However many accounts of one provider hang, there are threads for another one; in all a limited number."""
    for each in range(number):
        accounts.submit(f"whatsapp {each}", 5, hangs=True)
    accounts.submit("smtp us", 20)
    assert accounts.answered(20) == ["smtp us"] * 20
    assert accounts.threads.stuck <= accounts.threads.most // 2
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("request-")]
    assert len(names) <= 2 * accounts.threads.most  # those of other tests may be ending


def test_an_account_grows_with_its_answers(accounts: Accounts, gate: Gate) -> None:
    """An account that answers gets all threads, one more with each answer."""
    accounts.submit("smtp us", 3)
    accounts.answered(3)
    accounts.submit("smtp us", 10, hangs=True)
    accounts.gate.wait_for(4)
    gate.opened.set()
    accounts.answered(10)


def test_an_account_that_hung(accounts: Accounts, gate: Gate) -> None:
    """An account begins with one thread after a request that took long."""
    accounts.submit("smtp us", 3)
    accounts.answered(3)
    accounts.submit("smtp us", 1, hangs=True)
    accounts.gate.wait_for(1)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not accounts.threads.stuck:
        assert time.monotonic() < deadline
    assert not accounts.threads.has_room(account("smtp us"))
    gate.opened.set()
    accounts.answered(1)
    assert accounts.threads.has_room(account("smtp us"))
    assert not accounts.threads.has_room(account("smtp us"), 1)


def test_a_request_of_several_exchanges(gate: Gate) -> None:
    """A request that makes progress is not stuck, however long it takes."""
    threads: RequestThreads[str, str] = RequestThreads(1, account, stuck_seconds=0.2)

    def exchanges() -> str:
        for _ in range(20):
            time.sleep(0.03)
            threads.progressed()
        return "done"

    threads.submit("smtp us", exchanges)
    seen = 0
    while not threads.wait(0.01):
        seen = max(seen, threads.stuck)
    assert seen == 0
    assert [request.result() for _, request in threads.collect()] == ["done"]
    assert threads.close()
