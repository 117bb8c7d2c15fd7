//! The formats, and how each prints a list.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::text::plain;
use super::{API, Align, Column, Look, Record, Tone};

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// Columns for people.
    Table,
    /// More columns for people.
    Wide,
    /// One JSON document.
    Json,
    /// One JSON object a line.
    Jsonl,
    /// One YAML document.
    Yaml,
    /// Names only, one a line.
    Name,
    /// Comma-separated values with a heading, the keys of the JSON form.
    Csv,
    /// A table for a wiki.
    Markdown,
}

impl OutputFormat {
    /// The words of the command line.
    pub const NAMES: [&'static str; 8] =
        ["table", "wide", "json", "jsonl", "yaml", "name", "csv", "markdown"];

    /// The format of this word.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "table" => Self::Table,
            "wide" => Self::Wide,
            "json" => Self::Json,
            "jsonl" => Self::Jsonl,
            "yaml" => Self::Yaml,
            "name" => Self::Name,
            "csv" => Self::Csv,
            "markdown" => Self::Markdown,
            _ => return None,
        })
    }
}

#[derive(Serialize)]
struct Document<'a, T> {
    api: &'static str,
    kind: String,
    generated_at: jiff::Timestamp,
    items: &'a [T],
}

/// The items as text, with a newline at the end.
pub fn render<T: Record>(format: OutputFormat, items: &[T], look: &Look) -> String {
    let document = || Document { api: API, kind: format!("{}List", T::KIND), generated_at: look.now, items };
    match format {
        OutputFormat::Table => table(items, look, false),
        OutputFormat::Wide => table(items, look, true),
        OutputFormat::Json => ended(serde_json::to_string_pretty(&document()).expect(SERIALISES)),
        OutputFormat::Jsonl => {
            items.iter().map(|item| ended(serde_json::to_string(item).expect(SERIALISES))).collect()
        }
        OutputFormat::Yaml => ended(serde_saphyr::to_string(&document()).expect(SERIALISES)),
        OutputFormat::Name => items.iter().map(|item| ended(item.name())).collect(),
        OutputFormat::Csv => csv(items),
        OutputFormat::Markdown => markdown(items, look),
    }
}

/// Why writing a view cannot fail.
const SERIALISES: &str = "views have text keys only, so they always serialise";

fn ended(mut text: String) -> String {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn columns<T: Record>(wide: bool) -> Vec<Column<T>> {
    T::columns().into_iter().filter(|column| wide || !column.wide).collect()
}

fn table<T: Record>(items: &[T], look: &Look, wide: bool) -> String {
    let columns = columns::<T>(wide);
    let rows: Vec<Vec<(String, Tone)>> = items
        .iter()
        .map(|item| {
            columns.iter().map(|column| (plain(&(column.text)(item, look)), (column.tone)(item))).collect()
        })
        .collect();
    let headings: Vec<(&str, Align)> = columns.iter().map(|column| (column.title, column.align)).collect();
    grid(&headings, &rows, look)
}

/// Aligned columns without borders.
pub fn grid(headings: &[(&str, Align)], rows: &[Vec<(String, Tone)>], look: &Look) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if look.palette.is_coloured() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    if headings.iter().any(|(title, _)| !title.is_empty()) {
        table.set_header(headings.iter().map(|(title, _)| Cell::new(title).add_attribute(Attribute::Bold)));
    }
    for row in rows {
        table.add_row(row.iter().map(|(text, tone)| {
            let cell = Cell::new(text);
            match tone {
                Tone::Plain => cell,
                Tone::Good => cell.fg(Color::Green),
                Tone::Warning => cell.fg(Color::Yellow),
                Tone::Bad => cell.fg(Color::Red).add_attribute(Attribute::Bold),
            }
        }));
    }
    for (index, (_, align)) in headings.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            column.set_cell_alignment(match align {
                Align::Left => CellAlignment::Left,
                Align::Right => CellAlignment::Right,
            });
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn markdown<T: Record>(items: &[T], look: &Look) -> String {
    let columns = columns::<T>(true);
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = row(columns.iter().map(|column| column.title.to_owned()).collect());
    text.push_str(&row(columns
        .iter()
        .map(|column| match column.align {
            Align::Left => "---".to_owned(),
            Align::Right => "---:".to_owned(),
        })
        .collect()));
    for item in items {
        text.push_str(&row(columns
            .iter()
            .map(|column| plain(&(column.text)(item, look)).replace('\\', r"\\").replace('|', r"\|"))
            .collect()));
    }
    text
}

/// The fields of the JSON form in their order; nested ones as JSON in a cell.
fn csv<T: Record>(items: &[T]) -> String {
    let rows: Vec<Fields> = items
        .iter()
        .map(|item| {
            let text = serde_json::to_string(item).expect(SERIALISES);
            serde_json::from_str(&text).expect("a view is an object, and reads as what it was written as")
        })
        .collect();
    let Some(first) = rows.first() else { return String::new() };
    let line = |cells: Vec<String>| format!("{}\r\n", cells.join(","));
    let mut text = line(first.0.iter().map(|(key, _)| csv_cell(key)).collect());
    for row in &rows {
        let cells = first.0.iter().map(|(key, _)| match row.get(key) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(value)) => csv_cell(value),
            Some(value) => csv_cell(&value.to_string()),
        });
        text.push_str(&line(cells.collect()));
    }
    text
}

/// The fields of an object in the order in which they were written.
struct Fields(Vec<(String, Value)>);

impl Fields {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// RFC 4180: a cell with a comma, quote or line break is quoted, quotes within are doubled.
fn csv_cell(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests;
