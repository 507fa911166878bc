//! How an answer's body is packed. Requests ask for bodies that are not; some edges pack their own
//! errors nevertheless.
//!
//! Must hold: no more is unpacked than the limit allows.

use std::io::Read as _;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, header};

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Not at all.
    None,
    Gzip,
    /// In another way, or in several.
    Other,
}

/// What the headers say. Some servers write there what is no packing.
pub(super) fn of(headers: &HeaderMap) -> Packing {
    const NONE: [&str; 6] = ["", "identity", "none", "utf-8", "utf8", "chunked"];
    let values = headers.get_all(header::CONTENT_ENCODING).iter();
    let words = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let words = words.map(|word| word.trim_ascii().to_ascii_lowercase());
    let is_none = |word: &Vec<u8>| NONE.iter().any(|none| none.as_bytes() == &**word);
    let packed: Vec<_> = words.filter(|word| !is_none(word)).collect();
    match &*packed {
        [] => Packing::None,
        [one] if matches!(&**one, b"gzip" | b"x-gzip") => Packing::Gzip,
        _ => Packing::Other,
    }
}

/// The body with these headers as it was before; `None` if that cannot be known, or has more than
/// `limit` bytes.
pub(super) fn unpacked(body: Bytes, headers: &HeaderMap, limit: usize) -> Option<Bytes> {
    match of(headers) {
        Packing::None => Some(body),
        Packing::Other => None,
        Packing::Gzip => {
            let mut text = Vec::new();
            let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
            let mut unpacking = MultiGzDecoder::new(&*body).take(most);
            unpacking.read_to_end(&mut text).ok()?;
            (text.len() <= limit).then(|| text.into())
        }
    }
}
