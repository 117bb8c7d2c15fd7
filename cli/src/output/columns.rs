//! What a table shows of an item.

use serde::Serialize;

use super::Look;

/// Something that is listed: its JSON form for machines, its columns for people.
pub trait Record: Serialize {
    /// The kind of one item, such as `Snapshot`; lists are of the kind `SnapshotList`.
    const KIND: &'static str;

    /// The columns, in order.
    fn columns() -> Vec<Column<Self>>
    where
        Self: Sized;

    /// What `-o name` prints: a text that other commands accept.
    fn name(&self) -> String;
}

/// Where a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// What a cell means; shown as a colour, always besides a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Nothing in particular.
    Plain,
    /// As it should be.
    Good,
    /// May need attention.
    Warning,
    /// Wrong.
    Bad,
}

/// One column of a table.
pub struct Column<T> {
    /// The heading.
    pub title: &'static str,
    /// Where it is aligned.
    pub align: Align,
    /// Only with `-o wide`.
    pub wide: bool,
    /// The text of a cell.
    pub text: fn(&T, &Look) -> String,
    /// What the cell means.
    pub tone: fn(&T) -> Tone,
}

impl<T> Column<T> {
    /// A column of words.
    pub fn left(title: &'static str, text: fn(&T, &Look) -> String) -> Self {
        Self { title, align: Align::Left, wide: false, text, tone: |_| Tone::Plain }
    }

    /// A column of numbers.
    pub fn right(title: &'static str, text: fn(&T, &Look) -> String) -> Self {
        Self { align: Align::Right, ..Self::left(title, text) }
    }

    /// The same column, only with `-o wide`.
    #[must_use]
    pub fn only_wide(self) -> Self {
        Self { wide: true, ..self }
    }

    /// The same column, with a tone.
    #[must_use]
    pub fn toned(self, tone: fn(&T) -> Tone) -> Self {
        Self { tone, ..self }
    }
}
