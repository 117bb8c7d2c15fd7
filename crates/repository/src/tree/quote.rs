//! Names as strings of Go source (`strconv.Quote` without the outer quotes): they carry any bytes through JSON.

use std::borrow::Cow;

/// Appends the quoted form of a name. Printable text stays as it is.
pub fn quote_into(name: &[u8], out: &mut String) {
    for part in name.utf8_chunks() {
        for character in part.valid().chars() {
            quote_char(character, out);
        }
        for &byte in part.invalid() {
            push_hex(byte, out);
        }
    }
}

/// Whether the quoted form of a name is the name itself.
pub fn is_plain(name: &[u8]) -> bool {
    name.iter().all(|&byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
}

fn quote_char(character: char, out: &mut String) {
    match character {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        ' '..='~' => out.push(character),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        '\0'..='\x7f' => push_hex(character as u8, out),
        _ if is_printable(character) => out.push(character),
        _ => {
            let code = character as u32;
            let digits = if code < 0x1_0000 { 4 } else { 8 };
            out.push_str(if digits == 4 { "\\u" } else { "\\U" });
            for shift in (0..digits).rev() {
                out.push(hex_digit((code >> (shift * 4) & 0xf) as u8));
            }
        }
    }
}

/// Letters, marks, numbers, punctuation and symbols, as the standard library's debug form sees them. A mark is escaped
/// there only at the beginning of a text, hence the letter before it.
fn is_printable(character: char) -> bool {
    let mut text = [b'a'; 5];
    let length = character.encode_utf8(&mut text[1..]).len();
    let text = std::str::from_utf8(&text[..=length]).expect("a letter and a character are text");
    text.escape_debug().count() == 2
}

fn hex_digit(nibble: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(nibble)])
}

fn push_hex(byte: u8, out: &mut String) {
    out.push_str("\\x");
    out.push(hex_digit(byte >> 4));
    out.push(hex_digit(byte & 0xf));
}

/// Reads a quoted form; `None` when it is none.
pub fn unquote(quoted: &str) -> Option<Cow<'_, [u8]>> {
    if !quoted.bytes().any(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
        return Some(Cow::Borrowed(quoted.as_bytes()));
    }
    let mut name = Vec::with_capacity(quoted.len());
    let mut rest = quoted;
    while let Some(position) = rest.find(['\\', '"', '\n']) {
        name.extend_from_slice(&rest.as_bytes()[..position]);
        rest = rest[position..].strip_prefix('\\')?;
        let escape = *rest.as_bytes().first()?;
        rest = rest.get(1..)?;
        let mut code = |digits: usize| {
            let (text, tail) = rest.split_at_checked(digits)?;
            rest = tail;
            text.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(())?;
            u32::from_str_radix(text, 16).ok()
        };
        match escape {
            b'a' => name.push(0x07),
            b'b' => name.push(0x08),
            b'f' => name.push(0x0c),
            b'n' => name.push(b'\n'),
            b'r' => name.push(b'\r'),
            b't' => name.push(b'\t'),
            b'v' => name.push(0x0b),
            b'\\' | b'"' => name.push(escape),
            b'x' => name.push(u8::try_from(code(2)?).ok()?),
            b'u' | b'U' => {
                let character = char::from_u32(code(if escape == b'u' { 4 } else { 8 })?)?;
                name.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
            b'0'..=b'7' => {
                let (text, tail) = rest.split_at_checked(2)?;
                rest = tail;
                let low = u32::from_str_radix(text, 8).ok().filter(|_| !text.starts_with('+'))?;
                name.push(u8::try_from(u32::from(escape - b'0') * 64 + low).ok()?);
            }
            _ => return None,
        }
    }
    name.extend_from_slice(rest.as_bytes());
    Some(Cow::Owned(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quote(name: &[u8]) -> String {
        let mut out = String::new();
        quote_into(name, &mut out);
        out
    }

    proptest! {
        #[test]
        fn any_bytes_read_back(name in prop::collection::vec(any::<u8>(), 0..100)) {
            let quoted = quote(&name);
            let read = unquote(&quoted);
            prop_assert_eq!(read.as_deref(), Some(&name[..]));
            prop_assert_eq!(is_plain(&name), quoted.as_bytes() == name && name.is_ascii());
        }

        #[test]
        fn any_text_reads_back(name in ".*") {
            let quoted = quote(name.as_bytes());
            let read = unquote(&quoted);
            prop_assert_eq!(read.as_deref(), Some(name.as_bytes()));
        }

        #[test]
        fn any_text_is_a_quoted_form_or_not_and_never_a_panic(text in r#"([a-z\\"0-9éux]|\\[xuU0-7][0-9a-f]{0,8})*"#) {
            let _ = unquote(&text);
        }
    }

    #[test]
    fn quoted_forms_are_those_of_go() {
        for (name, quoted) in [
            (&b"plain name"[..], "plain name"),
            (b"a\"b\\c", r#"a\"b\\c"#),
            (b"\x07\x08\x0c\n\r\t\x0b", r"\a\b\f\n\r\t\v"),
            (b"\x00\x1f\x7f", r"\x00\x1f\x7f"),
            ("größe 日本 e\u{301} 🦀".as_bytes(), "größe 日本 e\u{301} 🦀"),
            (b"\xff\xc3(", r"\xff\xc3("),
            ("\u{a0}\u{200b}\u{feff}\u{2028}\u{3000}".as_bytes(), r"\u00a0\u200b\ufeff\u2028\u3000"),
            ("\u{e0001}".as_bytes(), r"\U000e0001"),
        ] {
            assert_eq!(quote(name), quoted);
        }
    }

    #[test]
    fn malformed_forms_are_refused() {
        for text in [
            r"\",
            r"\q",
            r"\x",
            r"\x1",
            r"\xg0",
            r"\u12",
            r"\ud800",
            r"\U00110000",
            r"\400",
            r"\08",
            "\"",
            "a\nb",
            r"\x+1",
            r"\'",
        ] {
            assert_eq!(unquote(text), None, "{text}");
        }
        assert_eq!(unquote(r"\101").as_deref(), Some(&b"A"[..]));
    }
}
