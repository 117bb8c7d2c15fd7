//! Sizes and counts as people read them, the same in every program. What machines read keeps the plain numbers, and so
//! does the report of a damage, where two sizes may differ by a byte.

/// A size in binary units with one decimal: `18.4 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A count with separators: `100,000`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: `1 table`, `5 tables`, `2 entries`.
pub fn counted(n: u64, noun: &str) -> String {
    let number = count(n);
    match noun.strip_suffix('y') {
        _ if n == 1 => format!("{number} {noun}"),
        Some(stem) => format!("{number} {stem}ies"),
        None => format!("{number} {noun}s"),
    }
}

/// The text, of so many bytes at most: what was cut ends with `…`.
pub fn cut(text: &str, bytes_max: usize) -> String {
    const MARK: &str = "…";
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes_max.saturating_sub(MARK.len()));
    format!("{}{MARK}", &text[..end])
}

/// The text, of so many characters at most: what was cut ends with `…`.
pub fn cut_chars(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect()
}

/// How many letters must be inserted, removed, replaced or exchanged with their neighbour.
pub fn distance(one: &str, other: &str) -> usize {
    let one: Vec<char> = one.chars().collect();
    let other: Vec<char> = other.chars().collect();
    let mut rows = vec![vec![0; other.len() + 1]; one.len() + 1];
    for (index, row) in rows.iter_mut().enumerate() {
        row[0] = index;
    }
    rows[0] = (0..=other.len()).collect();
    for i in 1..=one.len() {
        for j in 1..=other.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[one.len()][other.len()]
}

/// The name nearest to what was typed, among names that exist.
pub fn nearest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|name| (distance(typed, name), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).clamp(1, 3))
        .min()
        .map(|(_, name)| name)
}

/// An argument as a shell takes it back.
pub fn shell_word(word: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,~".contains(c);
    if !word.is_empty() && word.chars().all(safe) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_words_survive_the_shell() {
        assert_eq!(shell_word("/srv/shop.db"), "/srv/shop.db");
        assert_eq!(shell_word("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("/etc/holdfast/pg.pass"), "/etc/holdfast/pg.pass");
        assert_eq!(shell_word("/a b/it's"), r"'/a b/it'\''s'");
    }

    #[test]
    fn sizes_have_one_decimal_and_binary_units() {
        let sizes = [0, 1023, 1024, 1536, 1_048_575, 1_048_576, 19_293_798, u64::MAX];
        assert_eq!(
            sizes.map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "18.4 MiB", "16.0 EiB"]
        );
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!([0, 999, 1000, 48_211_904].map(count), ["0", "999", "1,000", "48,211,904"]);
    }

    #[test]
    fn what_is_cut_ends_at_a_character_and_says_so() {
        assert_eq!([cut("abcdef", 6), cut("abcdefg", 6), cut("üüüü", 6)], ["abcdef", "abc…", "ü…"]);
        assert_eq!([cut_chars("üüü", 3), cut_chars("üüüü", 3)], ["üüü", "üü…"]);
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2000].map(|n| counted(n, "file")), ["0 files", "1 file", "2,000 files"]);
        assert_eq!([1, 2].map(|n| counted(n, "entry")), ["1 entry", "2 entries"]);
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest("zzz", ["prod", "staging"]), None);
        assert_eq!(nearest("prd", ["prod", "staging"]), Some("prod"));
    }
}
