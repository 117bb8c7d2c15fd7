//! How an example is changed.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt as _};

/// The largest input, in bytes.
pub const INPUT_BYTES_MAX: usize = 256 << 10;

/// Numbers at which lengths and counts go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];
/// The same as texts write them, and what is none.
const NUMBERS: [&str; 9] =
    ["0", "-1", "65536", "4294967296", "18446744073709551615", "18446744073709551616", "1e999", "0.5", "NaN"];
/// What texts are made of.
const WORDS: [&str; 18] = [
    "null", "true", "{}", "[]", "\"\"", "{", "}", "[", "]", ",", ":", "\\u0000", "\\ud800", "&a ", "*a",
    "\n  - ", "ü", "..",
];

/// A few changes to one of the examples.
pub(super) fn mutated(random: &mut StdRng, examples: &[Vec<u8>]) -> Vec<u8> {
    let mut input = examples.choose(random).cloned().unwrap_or_default();
    for _ in 0..random.random_range(1..=4) {
        change(random, &mut input, examples);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn change(random: &mut StdRng, input: &mut Vec<u8>, examples: &[Vec<u8>]) {
    let at = random.random_range(0..=input.len());
    let length_max = 1 << random.random_range(0..12);
    let length = random.random_range(0..=length_max.min(input.len() - at));
    match random.random_range(0..10) {
        0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        1 if at < input.len() => input[at] = random.random(),
        2 => drop(input.drain(at..at + length)),
        3 => {
            let again = input[at..at + length].to_vec();
            insert(input, at, &again);
        }
        4 => input.truncate(at),
        5 => overwrite_with_an_edge(random, input, at),
        6 => {
            let other = examples.choose(random).map_or(&[][..], Vec::as_slice);
            let from = random.random_range(0..=other.len());
            let to = random.random_range(from..=other.len());
            insert(input, at, &other[from..to]);
        }
        7 => replace_a_number(random, input, at),
        8 => insert(input, at, WORDS.choose(random).expect("there are words").as_bytes()),
        9 => {
            // Deeper than any stack.
            let deep = ["[", "{\"a\":", "- ", "&a [*a,"].choose(random).expect("there are some");
            insert(input, at, &deep.as_bytes().repeat(1 << random.random_range(0..14)));
        }
        _ => {
            let mut noise = vec![0; length.min(64)];
            random.fill_bytes(&mut noise);
            insert(input, at, &noise);
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if input.len() + bytes.len() <= INPUT_BYTES_MAX {
        drop(input.splice(at..at, bytes.iter().copied()));
    }
}

fn overwrite_with_an_edge(random: &mut StdRng, input: &mut [u8], at: usize) {
    let edge = *EDGES.choose(random).expect("there are edges");
    let bytes = if random.random() { edge.to_le_bytes() } else { edge.to_be_bytes() };
    let width = 1 << random.random_range(0..4);
    let bytes = if bytes[0] == 0 && bytes[7] != 0 { &bytes[8 - width..] } else { &bytes[..width] };
    for (place, byte) in input[at..].iter_mut().zip(bytes) {
        *place = *byte;
    }
}

/// Puts another number in the place of the first one after a place.
fn replace_a_number(random: &mut StdRng, input: &mut Vec<u8>, at: usize) {
    let Some(start) = input[at..].iter().position(u8::is_ascii_digit).map(|found| at + found) else { return };
    let end = input[start..]
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .map_or(input.len(), |found| start + found);
    let number = NUMBERS.choose(random).expect("there are numbers");
    drop(input.splice(start..end, number.bytes()));
}
