//! Metrics in the text format of Prometheus, version 0.0.4.

use std::fmt::Write as _;

use holdfast_model::metrics::{MetricFamily, MetricKind};

/// What the text is, for the header `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes metrics as text.
pub fn render(families: &[MetricFamily]) -> String {
    let mut text = String::new();
    for family in families {
        let kind = match family.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        // Writing into a String cannot fail.
        let _ = writeln!(text, "# HELP {} {}", family.name, escape(family.help, false));
        let _ = writeln!(text, "# TYPE {} {kind}", family.name);
        for sample in &family.samples {
            let _ = write!(text, "{}{}", family.name, sample.suffix);
            for (index, (name, value)) in sample.labels.iter().enumerate() {
                let before = if index == 0 { '{' } else { ',' };
                let _ = write!(text, "{before}{name}=\"{}\"", escape(value, true));
            }
            let end = if sample.labels.is_empty() { "" } else { "}" };
            let _ = writeln!(text, "{end} {}", value(sample.value));
        }
    }
    text
}

fn escape(text: &str, quotes: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '"' if quotes => escaped.push_str("\\\""),
            other => escaped.push(other),
        }
    }
    escaped
}

fn value(value: f64) -> String {
    if value == f64::INFINITY {
        "+Inf".to_owned()
    } else if value == f64::NEG_INFINITY {
        "-Inf".to_owned()
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_values_are_written_in_full() {
        let mut family = MetricFamily::gauge("holdfast_x", "Back\\slash, \"quotes\"\nand a line.");
        family.add(&[("source", "a\"b\\c\nd"), ("empty", "")], 1_700_000_000.25);
        family.add(&[], f64::INFINITY);
        family.add(&[], f64::NEG_INFINITY);
        family.add(&[], f64::NAN);
        family.add(&[], 9_007_199_254_740_992.0);
        let expected = "# HELP holdfast_x Back\\\\slash, \"quotes\"\\nand a line.\n# TYPE holdfast_x gauge\n\
            holdfast_x{source=\"a\\\"b\\\\c\\nd\",empty=\"\"} 1700000000.25\nholdfast_x +Inf\nholdfast_x -Inf\n\
            holdfast_x NaN\nholdfast_x 9007199254740992\n";
        assert_eq!(render(&[family]), expected);
    }
}
