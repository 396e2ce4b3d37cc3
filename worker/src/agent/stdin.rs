//! What the user of a command does to it: signals and sizes at once, input as the command takes it.
//!
//! Input that a command does not take waits here, and the client is told how much more there is room for. Otherwise it
//! would fill all that is between here and there, and a signal would wait behind it.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use orch_proto::wire::{exec_input::Input, exec_output::Output};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
};

use super::attach::{signal, terminal_size};
use crate::runtime::{ExecInput, Terminal};

/// How much input the client may be ahead of the command.
const AHEAD_BYTES: u64 = 256 << 10;
/// The client is told when there is so much more room.
const STEP_BYTES: u64 = 64 << 10;
/// What waits here at most: a client may have sent more before it was told.
const MOST_BYTES: usize = 1 << 20;

/// The command's ends of what the user does.
pub(super) struct Controls {
    pub pid: u32,
    pub resizer: Option<Terminal>,
    pub stdin: Option<ExecInput>,
    /// Where the client is told of room; `None`: it does not ask.
    pub room: Option<mpsc::Sender<Output>>,
}

/// Until there is no more, or the user leaves: then `detach` gets the command's input, open as it is.
pub(super) async fn feed(
    mut inputs: impl Stream<Item = Input> + Send + Unpin,
    controls: Controls,
    detach: mpsc::Sender<Option<Waiting>>,
) {
    let Controls { pid, resizer, stdin, room } = controls;
    let mut waiting = stdin.map(|stdin| Waiting::begin(stdin, room));
    let mut closed = None;
    while let Some(input) = inputs.next().await {
        match input {
            Input::Stdin(data) => {
                if let Some(waiting) = &waiting {
                    waiting.push(data).await;
                }
            }
            Input::StdinClosed(_) => closed = closed.or(waiting.take().map(Waiting::close)),
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
                let _ = detach.send(waiting).await;
                return;
            }
            Input::Start(_) => {}
        }
    }
    if let Some(mut writer) = closed.or(waiting.map(Waiting::close)) {
        // Whatever becomes of it: there is nobody to tell.
        let _ = (&mut writer.0).await;
    }
}

/// Input on its way to a command; dropped, what was not taken is lost.
pub(super) struct Waiting {
    queue: mpsc::UnboundedSender<(Bytes, OwnedSemaphorePermit)>,
    room_here: Arc<Semaphore>,
    most: usize,
    writer: Writer,
}

struct Writer(JoinHandle<()>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Waiting {
    fn begin(stdin: impl AsyncWrite + Unpin + Send + 'static, room: Option<mpsc::Sender<Output>>) -> Self {
        let (queue, queued) = mpsc::unbounded_channel();
        // Who does not ask for room is held up by what waits, one piece at a time.
        let most = if room.is_some() { MOST_BYTES } else { 1 };
        let writer = Writer(tokio::spawn(write(stdin, queued, room)));
        Self { queue, room_here: Arc::new(Semaphore::new(most)), most, writer }
    }

    async fn push(&self, data: Bytes) {
        let bytes = u32::try_from(data.len().clamp(1, self.most)).unwrap_or(u32::MAX);
        if let Ok(held) = self.room_here.clone().acquire_many_owned(bytes).await {
            // Always there: it ends with this.
            let _ = self.queue.send((data, held));
        }
    }

    /// No more comes: the command's input ends when it has taken what waits.
    fn close(self) -> Writer {
        self.writer
    }
}

async fn write(
    mut stdin: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<(Bytes, OwnedSemaphorePermit)>,
    room: Option<mpsc::Sender<Output>>,
) {
    let tell = async |taken: u64| {
        if let Some(room) = &room {
            // Nobody may listen any more.
            let _ = room.send(Output::StdinRoom(taken + AHEAD_BYTES)).await;
        }
    };
    let (mut taken, mut told) = (0, 0);
    tell(taken).await;
    while let Some((data, _held)) = queue.recv().await {
        // What a command does not want any more is taken from the client all the same.
        let _ = stdin.write_all(&data).await;
        taken += data.len() as u64;
        if taken - told >= STEP_BYTES {
            told = taken;
            tell(taken).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncReadExt as _, time::timeout};

    use super::*;

    const SOON: Duration = Duration::from_millis(200);
    const LATE: Duration = Duration::from_secs(10);

    fn rooms(outputs: &mut mpsc::Receiver<Output>) -> Vec<u64> {
        let room = |output| match output {
            Output::StdinRoom(room) => room,
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(|| outputs.try_recv().ok().map(room)).collect()
    }

    #[tokio::test]
    async fn input_waits_and_its_sender_is_told_of_room() {
        let (mut command, stdin) = tokio::io::duplex(16);
        let (room, mut outputs) = mpsc::channel(99);
        let waiting = Waiting::begin(stdin, Some(room));
        assert_eq!(timeout(LATE, outputs.recv()).await, Ok(Some(Output::StdinRoom(AHEAD_BYTES))));
        let piece = Bytes::from(vec![7; 32 << 10]);
        for _ in 0..8 {
            timeout(LATE, waiting.push(piece.clone()))
                .await
                .expect("the command takes nothing, and nobody waits for it");
        }
        assert_eq!(rooms(&mut outputs), [0; 0], "nothing was taken");
        let mut taken = vec![0; 8 * piece.len()];
        timeout(LATE, command.read_exact(&mut taken)).await.unwrap().unwrap();
        assert!(taken.iter().all(|&byte| byte == 7));
    }

    #[tokio::test]
    async fn room_grows_with_what_is_taken_and_the_end_comes_last() {
        let (mut command, stdin) = tokio::io::duplex(16);
        let (room, mut outputs) = mpsc::channel(99);
        let waiting = Waiting::begin(stdin, Some(room));
        let pieces = 4 * STEP_BYTES / (32 << 10);
        for _ in 0..pieces {
            waiting.push(vec![7; 32 << 10].into()).await;
        }
        let mut writer = waiting.close();
        let mut all = Vec::new();
        timeout(LATE, command.read_to_end(&mut all)).await.unwrap().unwrap();
        assert_eq!(all.len() as u64, 4 * STEP_BYTES);
        timeout(LATE, &mut writer.0).await.unwrap().unwrap();
        let expected: Vec<u64> = (0..=4).map(|steps| AHEAD_BYTES + steps * STEP_BYTES).collect();
        assert_eq!(rooms(&mut outputs), expected);
    }

    #[tokio::test]
    async fn who_does_not_ask_for_room_is_held_up_by_what_waits() {
        let (mut command, stdin) = tokio::io::duplex(16);
        let waiting = Waiting::begin(stdin, None);
        waiting.push(vec![1; 64].into()).await;
        assert!(timeout(SOON, waiting.push(vec![2; 64].into())).await.is_err(), "the first still waits");
        let mut first = [0; 64];
        timeout(LATE, command.read_exact(&mut first)).await.unwrap().unwrap();
        timeout(LATE, waiting.push(vec![3; 64].into())).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_command_does_not_want_is_taken() {
        let (command, stdin) = tokio::io::duplex(16);
        drop(command);
        let (room, mut outputs) = mpsc::channel(200);
        let waiting = Waiting::begin(stdin, Some(room));
        for _ in 0..100 {
            timeout(LATE, waiting.push(vec![7; 64 << 10].into())).await.expect("it is dropped");
        }
        let mut writer = waiting.close();
        timeout(LATE, &mut writer.0).await.unwrap().unwrap();
        assert_eq!(rooms(&mut outputs).last(), Some(&(AHEAD_BYTES + 100 * (64 << 10))));
    }
}
