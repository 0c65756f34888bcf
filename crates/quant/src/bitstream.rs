//! Codes of 2, 3, 4, 5, 6 or 8 bits in one little-endian bit stream, to and from bytes. Knows no scales.
//!
//! Code `i` occupies the bits `[i * bits, (i + 1) * bits)` of the stream, so eight codes take `bits` bytes.

/// Codes of a stream whose length is a multiple of eight codes: `codes.len() * bits / 8` bytes.
pub(crate) fn unpack(bits: u32, bytes: &[u8], codes: &mut [u8]) {
    match bits {
        2 => unpack_fields::<2>(bytes, codes),
        3 => unpack_fields::<3>(bytes, codes),
        4 => unpack_nibbles(bytes, codes),
        5 => unpack_fields::<5>(bytes, codes),
        6 => unpack_fields::<6>(bytes, codes),
        _ => codes.copy_from_slice(bytes),
    }
}

fn unpack_fields<const BITS: usize>(bytes: &[u8], codes: &mut [u8]) {
    for (packed, eight) in bytes.as_chunks::<BITS>().0.iter().zip(codes.as_chunks_mut().0) {
        let mut word = [0; 8];
        word[..BITS].copy_from_slice(packed);
        *eight = spread::<BITS>(u64::from_le_bytes(word)).to_le_bytes();
    }
}

/// Eight fields of `BITS` bits, moved to a byte each: the fours are parted, then pairs, then single fields.
#[inline(always)]
fn spread<const BITS: usize>(word: u64) -> u64 {
    let word = part(word, 4 * BITS, 32);
    let word = part(word, 2 * BITS, 16);
    part(word, BITS, 8)
}

/// Of two fields of `bits` bits, side by side in each `2 * to` bits, moves the upper one to bit `to`.
#[inline(always)]
fn part(word: u64, bits: usize, to: usize) -> u64 {
    let field = (1 << bits) - 1;
    let fields = (0..64).step_by(2 * to).fold(0u64, |mask, at| mask | field << at);
    word & fields | word << (to - bits) & (fields << to)
}

/// The commonest width, written so that it vectorizes.
fn unpack_nibbles(bytes: &[u8], codes: &mut [u8]) {
    for (byte, pair) in bytes.iter().zip(codes.chunks_exact_mut(2)) {
        pair[0] = byte & 15;
        pair[1] = byte >> 4;
    }
}

/// Appends the little-endian bit stream of `codes` to `bytes`: a multiple of eight codes, each below `1 << bits`,
/// `bits <= 8`.
pub fn pack(bits: u32, codes: &[u8], bytes: &mut Vec<u8>) {
    for eight in codes.chunks_exact(8) {
        let word = eight.iter().rev().fold(0u64, |word, code| word << bits | u64::from(*code));
        bytes.extend_from_slice(&word.to_le_bytes()[..bits as usize]);
    }
}
