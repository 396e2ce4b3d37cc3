//! The runtime under raft in tests: tokio's, with every task bound to the life of the machine it belongs to.
//!
//! A life can end at any await point (a crash: nothing of it runs again) and can be suspended (SIGSTOP). The machine's
//! tasks take randomness from its seed. Outside of a simulation this is tokio's runtime.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use openraft::{async_runtime::AsyncRuntime, rt::deterministic_rng::DeterministicRng};
use openraft_rt_tokio::TokioRuntime;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::task::{AbortHandle, JoinHandle};

use super::ordered_watch::OrderedWatch;

type Seeded = DeterministicRng<TokioRuntime>;

/// Raft's runtime in tests.
#[derive(Debug)]
pub(crate) struct Runtime(Seeded);

tokio::task_local! {
    static LIFE: Life;
}

/// One machine from its start to its crash.
#[derive(Clone)]
pub(super) struct Life(Arc<Mutex<Inner>>);

struct Inner {
    random: StdRng,
    is_over: bool,
    is_paused: bool,
    /// The longest time that writing a file takes.
    disk_ms: u64,
    tasks: Vec<AbortHandle>,
    /// What wants to go on after a pause.
    waiting: Vec<Waker>,
}

impl Life {
    pub(super) fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let inner =
            Inner { random, is_over: false, is_paused: false, disk_ms: 2, tasks: Vec::new(), waiting: Vec::new() };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Runs `future` as a task of this machine. After a crash its outcome never comes.
    pub(super) fn spawn<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let seed = self.lock().random.random();
        let seeded = Seeded::scope(seed, future);
        let bound = Bound { life: self.clone(), future: Box::pin(LIFE.scope(self.clone(), seeded)) };
        let handle = tokio::spawn(bound);
        let mut inner = self.lock();
        if inner.tasks.len().is_multiple_of(256) {
            inner.tasks.retain(|task| !task.is_finished());
        }
        inner.tasks.push(handle.abort_handle());
        handle
    }

    /// A crash.
    pub(super) fn end(&self) {
        let mut inner = self.lock();
        inner.is_over = true;
        let tasks = std::mem::take(&mut inner.tasks);
        drop(inner);
        tasks.iter().for_each(AbortHandle::abort);
    }

    pub(super) fn pause(&self, is_paused: bool) {
        let mut inner = self.lock();
        inner.is_paused = is_paused;
        let waiting = if is_paused { Vec::new() } else { std::mem::take(&mut inner.waiting) };
        drop(inner);
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.lock().is_paused
    }

    pub(super) fn set_disk_ms(&self, disk_ms: u64) {
        self.lock().disk_ms = disk_ms;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a file operation takes now; `None` outside of a simulation.
pub(crate) fn disk_pause() -> Option<tokio::time::Sleep> {
    let pause_ms = LIFE.try_with(|life| {
        let mut inner = life.lock();
        let longest = inner.disk_ms;
        inner.random.random_range(0..=longest)
    });
    pause_ms.ok().map(|pause_ms| tokio::time::sleep(Duration::from_millis(pause_ms)))
}

/// A future that goes on only while its machine does.
struct Bound<T> {
    life: Life,
    future: Pin<Box<dyn Future<Output = T> + Send>>,
}

impl<T> Future for Bound<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        {
            let mut inner = self.life.lock();
            if inner.is_over {
                return Poll::Pending;
            }
            if inner.is_paused {
                inner.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
        }
        self.future.as_mut().poll(cx)
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: Send + 'static> = JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + Send> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <Seeded as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = OrderedWatch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: Send + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        match LIFE.try_with(Life::clone) {
            Ok(life) => life.spawn(future),
            Err(_) => TokioRuntime::spawn(Seeded::scope(rand::random(), future)),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        Seeded::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(Seeded::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}
