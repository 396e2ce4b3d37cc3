//! What the user of a command does to it: signals and sizes at once, input as the command takes it.
//!
//! Input that a command does not take waits here, and the client is told how much more there is room for. Otherwise it
//! would fill all that is between here and there, and a signal would wait behind it.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use orch_proto::wire::exec_input::Input;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinHandle,
};

use super::attach::{signal, terminal_size};
use crate::runtime::Terminal;

/// How much input a client may be ahead of the command.
pub(super) const AHEAD_BYTES: u64 = 256 << 10;
/// The client is told when there is so much more room.
const STEP_BYTES: u64 = 64 << 10;
/// So much waits here before signals wait with it: more than a client that does as it is told sends ahead, with what
/// small pieces cost.
const MOST_BYTES: usize = 4 << 20;
/// What keeping a piece costs beside its bytes.
const PIECE_BYTES: usize = 128;

/// The command's ends of what the user does.
pub(super) struct Controls<W> {
    pub pid: u32,
    pub resizer: Option<Terminal>,
    pub stdin: Option<W>,
    /// Where it is said how many bytes the command has taken; `None`: the client does not ask.
    pub taken: Option<watch::Sender<u64>>,
}

/// A command's input.
pub(super) enum Stdin {
    /// It has none, or it has ended.
    None,
    Open(Waiting),
    /// No more comes; what came is still on its way.
    Ending(Writer),
}

/// Input on its way to a command; dropped, what was not taken is lost.
pub(super) struct Waiting {
    queue: mpsc::UnboundedSender<(Bytes, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    most: usize,
    writer: Writer,
}

pub(super) struct Writer(JoinHandle<()>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Until there is no more and the command has taken it, or the user leaves: then `detach` gets the command's input as it is.
pub(super) async fn feed(
    mut inputs: impl Stream<Item = Input> + Send + Unpin,
    controls: Controls<impl AsyncWrite + Unpin + Send + 'static>,
    detach: mpsc::Sender<Stdin>,
) {
    let Controls { pid, resizer, stdin, taken } = controls;
    let mut stdin = stdin.map_or(Stdin::None, |stdin| Stdin::Open(Waiting::begin(stdin, taken)));
    while let Some(input) = inputs.next().await {
        match input {
            Input::Stdin(data) => {
                if let Stdin::Open(waiting) = &stdin {
                    waiting.push(data).await;
                }
            }
            Input::StdinClosed(_) => stdin = stdin.close(),
            Input::Resize(size) => {
                if let Some(resizer) = &resizer {
                    let (rows, columns) = terminal_size(&size);
                    // The terminal may be gone with its process.
                    let _ = resizer.resize(rows, columns);
                }
            }
            Input::Signal(number) => signal(pid, number),
            Input::Detach(_) => {
                // The command may have ended meanwhile.
                let _ = detach.send(stdin).await;
                return;
            }
            Input::Start(_) => {}
        }
    }
    if let Stdin::Ending(mut writer) = stdin.close() {
        // Whatever becomes of it: there is nobody to tell.
        let _ = (&mut writer.0).await;
    }
}

impl Stdin {
    /// No more comes: the command's input ends when it has taken what waits.
    fn close(self) -> Self {
        match self {
            Self::Open(Waiting { writer, .. }) => Self::Ending(writer),
            other => other,
        }
    }
}

impl Waiting {
    fn begin(stdin: impl AsyncWrite + Unpin + Send + 'static, taken: Option<watch::Sender<u64>>) -> Self {
        let (queue, queued) = mpsc::unbounded_channel();
        // Who does not ask for room is held up by what waits, one piece at a time.
        let most = if taken.is_some() { MOST_BYTES } else { 1 };
        let writer = Writer(tokio::spawn(write(stdin, queued, taken)));
        Self { queue, room: Arc::new(Semaphore::new(most)), most, writer }
    }

    async fn push(&self, data: Bytes) {
        let cost = u32::try_from((data.len() + PIECE_BYTES).min(self.most)).unwrap_or(u32::MAX);
        if let Ok(held) = self.room.clone().acquire_many_owned(cost).await {
            // Always there: it ends with this.
            let _ = self.queue.send((data, held));
        }
    }
}

async fn write(
    mut stdin: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<(Bytes, OwnedSemaphorePermit)>,
    taken: Option<watch::Sender<u64>>,
) {
    let (mut bytes, mut told) = (0, 0);
    while let Some((data, _held)) = queue.recv().await {
        // What a command does not want any more is taken from the client all the same.
        let _ = stdin.write_all(&data).await;
        bytes += data.len() as u64;
        if bytes - told >= STEP_BYTES {
            told = bytes;
            if let Some(taken) = &taken {
                taken.send_replace(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, time::Duration};

    use orch_proto::wire;
    use tokio::{
        io::{AsyncReadExt as _, DuplexStream},
        time::timeout,
    };

    use super::*;

    const SOON: Duration = Duration::from_millis(200);
    const LATE: Duration = Duration::from_secs(10);

    fn controls(pid: u32, asks: bool) -> (DuplexStream, watch::Receiver<u64>, Controls<DuplexStream>) {
        let (command, stdin) = tokio::io::duplex(16);
        let (taken, seen) = watch::channel(0);
        (command, seen, Controls { pid, resizer: None, stdin: Some(stdin), taken: asks.then_some(taken) })
    }

    fn piece(kib: usize) -> Input {
        Input::Stdin(vec![7; kib << 10].into())
    }

    /// What comes in, one after the other.
    fn inputs(inputs: Vec<Input>) -> impl Stream<Item = Input> + Send + Unpin {
        futures::stream::iter(inputs)
    }

    #[tokio::test]
    async fn a_signal_does_not_wait_behind_input() {
        let mut program = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let (_command, taken, controls) = controls(program.id().unwrap(), true);
        let mut user = vec![piece(32); usize::try_from(AHEAD_BYTES >> 15).unwrap()];
        user.push(Input::Signal(15));
        let fed = tokio::spawn(feed(inputs(user), controls, mpsc::channel(1).0));
        let ended = timeout(LATE, program.wait()).await.expect("it hears the signal").unwrap();
        assert_eq!((ended.signal(), *taken.borrow()), (Some(15), 0));
        fed.abort();
    }

    #[tokio::test]
    async fn what_is_taken_is_told_and_the_end_comes_last() {
        for closes in [true, false] {
            let (mut command, taken, controls) = controls(0, true);
            let mut user = vec![piece(32); 8];
            user.extend(closes.then_some(Input::StdinClosed(wire::Empty {})));
            let fed = tokio::spawn(feed(inputs(user), controls, mpsc::channel(1).0));
            let mut all = Vec::new();
            timeout(LATE, command.read_to_end(&mut all)).await.expect("its input ends").unwrap();
            assert_eq!(all.len(), (8 * 32) << 10);
            timeout(LATE, fed).await.expect("nothing is left to do").unwrap();
            assert_eq!(*taken.borrow(), 4 * STEP_BYTES);
        }
    }

    #[tokio::test]
    async fn who_does_not_ask_for_room_is_held_up_by_what_waits() {
        let (mut command, _, Controls { stdin, taken, .. }) = controls(0, false);
        let waiting = Waiting::begin(stdin.unwrap(), taken);
        waiting.push(vec![1; 64].into()).await;
        assert!(timeout(SOON, waiting.push(vec![2; 64].into())).await.is_err(), "the first still waits");
        let mut first = [0; 64];
        timeout(LATE, command.read_exact(&mut first)).await.unwrap().unwrap();
        timeout(LATE, waiting.push(vec![3; 64].into())).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_command_does_not_want_is_taken() {
        let (command, taken, controls) = controls(0, true);
        drop(command);
        let fed = feed(inputs(vec![piece(1024); 10]), controls, mpsc::channel(1).0);
        timeout(LATE, fed).await.expect("it is dropped");
        assert_eq!(*taken.borrow(), 10 << 20);
    }

    #[tokio::test]
    async fn who_detaches_leaves_the_input_as_it_is() {
        for (closes, is_open) in [(false, true), (true, false)] {
            let (mut command, _, controls) = controls(0, true);
            let (detach, mut detached) = mpsc::channel(1);
            let mut user = vec![piece(64)];
            user.extend(closes.then_some(Input::StdinClosed(wire::Empty {})));
            user.push(Input::Detach(wire::Empty {}));
            timeout(LATE, feed(inputs(user), controls, detach)).await.expect("nobody waits for the command");
            let left = detached.recv().await.expect("its input");
            let mut typed = vec![0; 64 << 10];
            timeout(LATE, command.read_exact(&mut typed)).await.expect("what was typed before").unwrap();
            let end = timeout(if is_open { SOON } else { LATE }, command.read(&mut typed)).await;
            assert_eq!(end.is_err(), is_open, "{end:?}");
            drop(left);
        }
    }
}
