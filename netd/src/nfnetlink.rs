//! The netfilter side of netlink, as far as it is needed: rulesets and their generation, forgetting connections. Generic
//! netlink has messages of the same shape: its command stands where netfilter's family does. Of rtnetlink's, which another
//! module makes, only the exchange is here.
//!
//! The kernel has carried a request out, and its answer waits, when the sending returns: plain blocking sockets on a
//! namespace's thread are enough.

use std::{
    io,
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
        sockopt,
    },
    time::{TimeVal, TimeValLike},
};
use zeroize::{Zeroize as _, Zeroizing};

const HEADER_LEN: usize = 16;
/// Where a header has the message's number.
const SEQUENCE: Range<usize> = 8..12;
/// Family, version and resource id of netfilter messages.
const NFGEN_LEN: usize = 4;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// Of a batch's beginning.
const BATCH_GENERATION: u16 = 1;
/// The kernel fills dumps up to 32 KiB.
const RECEIVE_LEN: usize = 64 * 1024;
/// For answers of which the beginning says all: they come one at a time.
const SHORT_LEN: usize = 8 * 1024;
/// What sockets can send without being told to: half of the kernel's usual limit.
const SEND_LEN: usize = 100 * 1024;
const RECEIVE_TIMEOUT_S: i64 = 5;

/// A socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    /// The number of the next message. Answers to earlier ones, that nobody waited for, are passed over.
    next: AtomicU32,
    /// One exchange at a time: each reads its own answers only.
    turn: Mutex<()>,
}

/// What is asked of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One message comes back.
    Get,
    /// Many messages come back.
    Dump,
    /// Done, or an error.
    Act,
}

impl Mode {
    pub(crate) fn flags(self) -> u16 {
        match self {
            Self::Get => NLM_F_REQUEST,
            Self::Dump => NLM_F_REQUEST | NLM_F_DUMP,
            Self::Act => NLM_F_REQUEST | NLM_F_ACK,
        }
    }
}

impl Socket {
    pub(crate) fn open() -> io::Result<Self> {
        Self::of(SockProtocol::NetlinkNetFilter)
    }

    pub(crate) fn generic() -> io::Result<Self> {
        Self::of(SockProtocol::NetlinkGeneric)
    }

    pub(crate) fn route() -> io::Result<Self> {
        Self::of(SockProtocol::NetlinkRoute)
    }

    fn of(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(RECEIVE_TIMEOUT_S))?;
        Ok(Self { fd, next: AtomicU32::new(1), turn: Mutex::default() })
    }

    /// Sends one message and hands each payload (attributes only) that comes back to `each`.
    pub(crate) fn request(
        &self,
        kind: u16,
        mode: Mode,
        family: u8,
        attributes: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        // It may carry a device's private key, as the answers may: no copy outlives the request.
        let mut message = Zeroizing::new(Vec::with_capacity(HEADER_LEN + NFGEN_LEN + attributes.len()));
        append(&mut message, Header { kind, flags: mode.flags(), sequence: 0, family, resource: 0 }, attributes)?;
        let mut buffer = match mode {
            Mode::Get => vec![0; SHORT_LEN],
            Mode::Dump | Mode::Act => vec![0; RECEIVE_LEN],
        };
        let mut is_short = false;
        self.exchange(&mut message, mode, &mut buffer, |_, body| match body.get(NFGEN_LEN..) {
            Some(attributes) => each(attributes),
            None => is_short = true,
        })?;
        if is_short { Err(short()) } else { Ok(()) }
    }

    /// Sends one message, whose number it sets, and hands the type and body of each that comes back to `each`. Nothing of
    /// them is left in `buffer`.
    pub(crate) fn exchange(
        &self,
        message: &mut [u8],
        mode: Mode,
        buffer: &mut [u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = self.next.fetch_add(1, Ordering::Relaxed);
        message.get_mut(SEQUENCE).ok_or_else(short)?.copy_from_slice(&sequence.to_ne_bytes());
        sendto(self.fd.as_raw_fd(), message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        loop {
            let received = recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty())?;
            if read_and_wipe(&mut buffer[..received], sequence, mode, &mut each)? {
                return Ok(());
            }
        }
    }

    /// Sends messages that are carried out together or not at all; with `generation` only while it is the subsystem's.
    pub(crate) fn batch<'a>(
        &self,
        subsystem: u8,
        generation: Option<u32>,
        messages: impl ExactSizeIterator<Item = Batched<'a>>,
    ) -> Result<(), Refusal> {
        let count = u32::try_from(messages.len()).map_err(io::Error::other)?;
        let mut buffer = Vec::new();
        let edge =
            |kind, sequence| Header { kind, flags: NLM_F_REQUEST, sequence, family: 0, resource: u16::from(subsystem) };
        let first = self.next.fetch_add(count + 2, Ordering::Relaxed);
        let last = first + count;
        let mut condition = Vec::new();
        if let Some(generation) = generation {
            push(&mut condition, BATCH_GENERATION, &generation.to_be_bytes());
        }
        append(&mut buffer, edge(BATCH_BEGIN, first), &condition)?;
        for (sequence, message) in (first + 1..).zip(messages) {
            // One answer for all: to the last.
            let ack = if sequence == last { NLM_F_ACK } else { 0 };
            let flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND | ack;
            let kind = (u16::from(subsystem) << 8) | u16::from(message.kind);
            append(
                &mut buffer,
                Header { kind, flags, sequence, family: message.family, resource: 0 },
                message.attributes,
            )?;
        }
        append(&mut buffer, edge(BATCH_END, last + 1), &[])?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.send_whole(&buffer)?;
        self.batch_result(first, last)
    }

    /// The kernel takes a batch in one piece or not at all.
    fn send_whole(&self, buffer: &[u8]) -> io::Result<()> {
        if buffer.len() > SEND_LEN {
            setsockopt(&self.fd, sockopt::SndBufForce, &(buffer.len() * 2))?;
        }
        sendto(self.fd.as_raw_fd(), buffer, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Everything has been carried out, and every answer waits, when the sending returns.
    fn batch_result(&self, first: u32, last: u32) -> Result<(), Refusal> {
        let (mut refusal, mut done) = (None, false);
        let mut buffer = vec![0; SHORT_LEN];
        loop {
            let received = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(received) => received,
                Err(nix::Error::EAGAIN) => break,
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
            };
            let answers = results(&buffer[..received]);
            for (sequence, code) in answers.into_iter().filter(|(sequence, _)| (first..=last + 1).contains(sequence)) {
                if code == 0 {
                    done |= sequence == last;
                } else if refusal.is_none() {
                    let error = io::Error::from_raw_os_error(-code);
                    refusal = Some(Refusal { message: ((sequence - first) as usize).checked_sub(1), error });
                }
            }
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None if done => Ok(()),
            None => Err(io::Error::other("the kernel gave no answer to a batch").into()),
        }
    }
}

/// A message of a batch.
pub(crate) struct Batched<'a> {
    /// Within the subsystem.
    pub(crate) kind: u8,
    pub(crate) family: u8,
    pub(crate) attributes: &'a [u8],
}

/// Why a batch was not carried out.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Which message it was; `None`: all of it.
    pub(crate) message: Option<usize>,
    pub(crate) error: io::Error,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { message: None, error }
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
}

fn append(buffer: &mut Vec<u8>, header: Header, attributes: &[u8]) -> io::Result<()> {
    let length = HEADER_LEN + NFGEN_LEN + attributes.len();
    buffer.extend(u32::try_from(length).map_err(io::Error::other)?.to_ne_bytes());
    buffer.extend(header.kind.to_ne_bytes());
    buffer.extend(header.flags.to_ne_bytes());
    buffer.extend(header.sequence.to_ne_bytes());
    buffer.extend([0; 4]);
    buffer.extend([header.family, 0]);
    buffer.extend(header.resource.to_be_bytes());
    // Attributes end at a multiple of four, so the next message begins at one.
    buffer.extend(attributes);
    Ok(())
}

/// The number of each message that is answered, with its error code (0: done).
fn results(mut buffer: &[u8]) -> Vec<(u32, i32)> {
    let mut results = Vec::new();
    while let Some(header) = buffer.first_chunk::<HEADER_LEN>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        // What was refused comes after it, cut off or not.
        let code = buffer.get(HEADER_LEN..).and_then(|body| body.first_chunk().copied());
        if let (NLMSG_ERROR, Some(code)) = (kind, code) {
            results.push((sequence, i32::from_ne_bytes(code)));
        }
        if length < HEADER_LEN {
            break;
        }
        buffer = buffer.get(align(length)..).unwrap_or_default();
    }
    results
}

/// As [`read_messages`]; nothing of them is left. Only what was received is wiped: the buffer is much larger.
fn read_and_wipe(messages: &mut [u8], wanted: u32, mode: Mode, each: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
    let complete = read_messages(messages, wanted, mode, each);
    messages.zeroize();
    complete
}

/// Whether the reply is complete.
fn read_messages(mut buffer: &[u8], wanted: u32, mode: Mode, each: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
    while let Some(header) = buffer.first_chunk::<HEADER_LEN>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let Some(body) = buffer.get(HEADER_LEN..length) else { return Err(short()) };
        buffer = buffer.get(align(length)..).unwrap_or_default();
        if sequence != wanted {
            continue;
        }
        match kind {
            NLMSG_ERROR => {
                let code = body.first_chunk().copied().map(i32::from_ne_bytes).ok_or_else(short)?;
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            NLMSG_DONE => return Ok(true),
            _ => {
                each(kind, body);
                if mode == Mode::Get {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

fn short() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel sent a netlink message that is too short")
}

/// Attributes and messages start at multiples of four.
fn align(length: usize) -> usize {
    length.div_ceil(4) * 4
}

/// Attributes: type without its flag bits, value.
pub(crate) fn attributes(mut buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, t0, t1] = *buffer.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let kind = u16::from_ne_bytes([t0, t1]) & 0x3fff;
        let value = buffer.get(4..length)?;
        buffer = buffer.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute `kind`.
pub(crate) fn attribute(buffer: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(buffer).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Appends an attribute; `kind` may have its flag bits.
pub(crate) fn push(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values come from messages of at most 64 KiB or are constants.
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    buffer.extend(length.to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(value);
    buffer.resize(align(buffer.len()), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back() {
        let mut buffer = Vec::new();
        push(&mut buffer, 1 | 0x8000, b"abc");
        push(&mut buffer, 7, &[1, 2, 3, 4]);
        assert_eq!(attributes(&buffer).collect::<Vec<_>>(), [(1, &b"abc"[..]), (7, &[1, 2, 3, 4][..])]);
        assert_eq!(attribute(&buffer, 7), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attributes(&buffer[..6]).count(), 0);
    }

    fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend(u32::try_from(HEADER_LEN + body.len()).unwrap().to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend([0; 2]);
        message.extend(sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        message
    }

    #[test]
    fn an_error_of_the_kernel_is_reported() {
        let message = message(NLMSG_ERROR, 7, &[&(-2_i32).to_ne_bytes()[..], &[0; 16]].concat());
        let error = read_messages(&message, 7, Mode::Act, &mut |_, _| {}).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!read_messages(&message, 8, Mode::Act, &mut |_, _| {}).unwrap(), "the answer to another request");
    }

    /// Of answers that end a request, do not end it, are none to it, or cannot be read.
    #[test]
    fn nothing_is_left_of_what_was_read() {
        const KIND: u16 = 30;
        let mut secret = vec![0; NFGEN_LEN];
        push(&mut secret, 3, &[0xa5; 32]);
        let part = message(KIND, 7, &secret);
        let done = [&part[..], &message(NLMSG_DONE, 7, &[0; 4])].concat();
        let mut short = part.clone();
        short[0] += 4;
        for (messages, wanted, mode, read, complete) in [
            (&part, 7, Mode::Get, 1, Some(true)),
            (&part, 7, Mode::Dump, 1, Some(false)),
            (&done, 7, Mode::Dump, 1, Some(true)),
            (&part, 8, Mode::Dump, 0, Some(false)),
            (&short, 7, Mode::Dump, 0, None),
        ] {
            let (mut messages, mut seen) = (messages.clone(), 0);
            let told = read_and_wipe(&mut messages, wanted, mode, &mut |_, answer| {
                seen += usize::from(attribute(&answer[NFGEN_LEN..], 3) == Some(&[0xa5; 32]));
            });
            assert_eq!((seen, told.ok()), (read, complete));
            assert!(messages.iter().all(|byte| *byte == 0), "{messages:02x?}");
        }
    }
}
