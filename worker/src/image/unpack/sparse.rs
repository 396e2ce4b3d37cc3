//! Files with holes as PAX archives have them: GNU tar's `--sparse --format=posix` and, unasked, bsdtar. The records say
//! where the pieces lie (forms 0.0 and 0.1), or the content begins with it (1.0), and the entry's own name is made up.
//! The older GNU form is the tar reader's.

use std::{
    collections::VecDeque,
    io::{self, Read},
};

use tar::Entry;

use super::invalid;

const RECORD_PREFIX: &str = "GNU.sparse.";
const BLOCK_BYTES: usize = 512;
/// More pieces than any file of sense has.
const MAX_PIECES: u64 = 1 << 20;
/// The longest number: `u64::MAX`.
const MAX_DIGITS: usize = 20;

/// What an entry's records say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    /// Its real name, where the entry's is not.
    pub name: Option<Vec<u8>>,
    /// With its holes.
    pub bytes: u64,
    /// Offsets and lengths in turn; `None`: the content begins with them.
    numbers: Option<Vec<u64>>,
}

impl Sparse {
    /// `None` for an entry that is as long as it says.
    pub(super) fn of<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Option<Self>> {
        let Some(records) = entry.pax_extensions()? else { return Ok(None) };
        let mut found = Self::default();
        let (mut size, mut numbers, mut in_content) = (None, Vec::new(), false);
        for record in records {
            let record = record?;
            let Some(key) = record.key().ok().and_then(|key| key.strip_prefix(RECORD_PREFIX)) else { continue };
            let value = record.value_bytes();
            match key {
                "name" => found.name = Some(value.to_vec()),
                "size" | "realsize" => size = Some(number(value)?),
                "major" => in_content = value != b"0",
                // Nothing but a hole.
                "map" if value.is_empty() => numbers.clear(),
                "map" => numbers = value.split(|&byte| byte == b',').map(number).collect::<io::Result<_>>()?,
                "offset" | "numbytes" => numbers.push(number(value)?),
                _ => {}
            }
        }
        let Some(bytes) = size else { return Ok(None) };
        Ok(Some(Self { bytes, numbers: (!in_content).then_some(numbers), ..found }))
    }

    /// The content with its holes.
    pub(super) fn expand<R: Read>(self, mut content: R) -> io::Result<Expanded<R>> {
        let numbers = match self.numbers {
            Some(numbers) => numbers,
            None => read_numbers(&mut content)?,
        };
        let (pairs, rest) = numbers.as_chunks::<2>();
        let mut end = 0;
        let in_order = pairs.iter().all(|&[offset, len]| {
            let fits = offset >= end;
            end = offset.saturating_add(len);
            fits && end <= self.bytes
        });
        if !rest.is_empty() || !in_order {
            return Err(invalid("a file with holes whose pieces overlap or lie outside"));
        }
        Ok(Expanded { content, pieces: pairs.iter().copied().collect(), at: 0, end: self.bytes })
    }
}

fn number(text: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(text).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| invalid("a file with holes whose map is no numbers"))
}

/// A count of pieces and two numbers for each, a line for every number, filled up to whole blocks.
fn read_numbers(content: &mut impl Read) -> io::Result<Vec<u64>> {
    let (mut numbers, mut wanted, mut digits) = (Vec::new(), None, Vec::new());
    let mut block = [0; BLOCK_BYTES];
    while wanted.is_none_or(|wanted| (numbers.len() as u64) < wanted) {
        content.read_exact(&mut block)?;
        for &byte in &block {
            if wanted.is_some_and(|wanted| numbers.len() as u64 == wanted) {
                break;
            }
            if byte != b'\n' {
                digits.push(byte);
                if digits.len() > MAX_DIGITS {
                    return Err(invalid("a file with holes whose map is no numbers"));
                }
                continue;
            }
            let value = number(&std::mem::take(&mut digits))?;
            match wanted {
                Some(_) => numbers.push(value),
                None if value > MAX_PIECES => return Err(invalid("a file with more holes than make sense")),
                None => wanted = Some(value * 2),
            }
        }
    }
    Ok(numbers)
}

/// Reads as the file was: zeros between the pieces.
#[derive(Debug)]
pub(super) struct Expanded<R> {
    content: R,
    pieces: VecDeque<[u64; 2]>,
    at: u64,
    end: u64,
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pieces.front().is_some_and(|&[offset, len]| offset + len <= self.at) {
            self.pieces.pop_front();
        }
        let (limit, is_hole) = match self.pieces.front() {
            Some(&[offset, len]) if offset <= self.at => (offset + len, false),
            Some(&[offset, _]) => (offset, true),
            None => (self.end, true),
        };
        let len = buffer.len().min(usize::try_from(limit - self.at).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..len];
        let read = if is_hole {
            buffer.fill(0);
            len
        } else {
            self.content.read(buffer)?
        };
        if read == 0 && len > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(numbers: Option<&[u64]>, bytes: u64, content: &[u8], expected: Option<&[u8]>) {
        let sparse = Sparse { name: None, bytes, numbers: numbers.map(<[u64]>::to_vec) };
        let mut found = Vec::new();
        let read = sparse.expand(content).and_then(|mut expanded| expanded.read_to_end(&mut found));
        assert_eq!(read.is_ok().then_some(found.as_slice()), expected, "{numbers:?} {bytes}");
    }

    #[test]
    fn pieces_lie_where_the_map_says() {
        check(Some(&[1, 2, 5, 1]), 7, b"abc", Some(b"\0ab\0\0c\0"));
        check(Some(&[0, 3]), 3, b"abc", Some(b"abc"));
        check(Some(&[3, 0]), 3, b"", Some(b"\0\0\0"));
        check(Some(&[]), 0, b"", Some(b""));
        let with_map = |map: &str, content: &[u8]| {
            let mut block = map.as_bytes().to_vec();
            block.resize(map.len().next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES), 0);
            [&block, content].concat()
        };
        check(None, 4, &with_map("2\n1\n1\n4\n0\n", b"x"), Some(b"\0x\0\0"));
        check(None, 2, &with_map("0\n", b""), Some(b"\0\0"));
        let many: String = (0..200).map(|n| format!("{}\n1\n", n * 2)).collect();
        let expected: Vec<u8> = b"x\0".repeat(200);
        check(None, 400, &with_map(&format!("200\n{many}"), &[b'x'; 200]), Some(&expected));
        for broken in ["x\n", "1\n5\n", "99999999999\n", "1\n-1\n1\n", "000000000000000000000000001\n"] {
            check(None, 4, &with_map(broken, b""), None);
        }
        for (numbers, content) in [
            (&[3, 2][..], &b"abc"[..]),
            (&[2, 1, 1, 1], b"abc"),
            (&[1], b"abc"),
            (&[0, 3], b"ab"),
            (&[u64::MAX, 2], b""),
        ] {
            check(Some(numbers), 4, content, None);
        }
    }
}
