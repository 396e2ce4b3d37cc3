//! A watch channel that wakes those who wait in the order in which they came.
//!
//! tokio's own wakes them in an order of chance, to spread a lock, and no seed decides that chance.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use openraft::rt::watch;
use tokio::sync::watch as plain;

pub(crate) struct OrderedWatch;

pub(crate) struct Sender<T> {
    /// Always there until it is dropped.
    plain: Option<plain::Sender<T>>,
    shared: Arc<Mutex<Shared>>,
}

pub(crate) struct Receiver<T> {
    plain: plain::Receiver<T>,
    shared: Arc<Mutex<Shared>>,
    seen: u64,
}

struct Shared {
    version: u64,
    senders: usize,
    waiting: Vec<Waker>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake(mut shared: MutexGuard<'_, Shared>) {
    let waiting = std::mem::take(&mut shared.waiting);
    drop(shared);
    waiting.into_iter().for_each(Waker::wake);
}

impl<T> Sender<T> {
    fn plain(&self) -> &plain::Sender<T> {
        self.plain.as_ref().expect("it is there until it is dropped")
    }

    fn changed(&self) {
        let mut shared = lock(&self.shared);
        shared.version += 1;
        wake(shared);
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        lock(&self.shared).senders += 1;
        Self { plain: self.plain.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.plain = None;
        let mut shared = lock(&self.shared);
        shared.senders -= 1;
        if shared.senders == 0 {
            wake(shared);
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { plain: self.plain.clone(), shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl watch::Watch for OrderedWatch {
    type Sender<T: Send + Sync> = Sender<T>;
    type Receiver<T: Send + Sync> = Receiver<T>;
    type Ref<'a, T: Send + 'a> = plain::Ref<'a, T>;

    fn channel<T: Send + Sync>(init: T) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = plain::channel(init);
        let shared = Arc::new(Mutex::new(Shared { version: 0, senders: 1, waiting: Vec::new() }));
        let receiver = Receiver { plain: receiver, shared: Arc::clone(&shared), seen: 0 };
        (Sender { plain: Some(sender), shared }, receiver)
    }
}

impl<T: Send + Sync> watch::WatchSender<OrderedWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), watch::SendError<T>> {
        self.plain().send(value).map_err(|error| watch::SendError(error.0))?;
        self.changed();
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let is_modified = self.plain().send_if_modified(modify);
        if is_modified {
            self.changed();
        }
        is_modified
    }

    fn borrow_watched(&self) -> plain::Ref<'_, T> {
        self.plain().borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        let seen = lock(&self.shared).version;
        Receiver { plain: self.plain().subscribe(), shared: Arc::clone(&self.shared), seen }
    }
}

impl<T: Send + Sync> watch::WatchReceiver<OrderedWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), watch::RecvError> {
        let (shared, seen) = (&self.shared, &mut self.seen);
        poll_fn(|cx| {
            let mut shared = lock(shared);
            if shared.version != *seen {
                *seen = shared.version;
                return Poll::Ready(Ok(()));
            }
            if shared.senders == 0 {
                return Poll::Ready(Err(watch::RecvError(())));
            }
            if !shared.waiting.iter().any(|known| known.will_wake(cx.waker())) {
                shared.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn borrow_watched(&self) -> plain::Ref<'_, T> {
        self.plain.borrow()
    }

    fn borrow_and_update(&mut self) -> plain::Ref<'_, T> {
        self.seen = lock(&self.shared).version;
        self.plain.borrow_and_update()
    }
}
