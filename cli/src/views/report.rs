//! A report, for machines as it is.

use holdfast_model::report::{Report, VerdictState};
use serde::Serialize;

use crate::output::{Column, Record, Tone};

/// One report.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub(crate) struct ReportView(pub Report);

impl Record for ReportView {
    const KIND: &'static str = "Report";

    fn columns() -> Vec<Column<Self>> {
        vec![
            Column::<Self>::left("REPORT", |view, _| view.0.kind().to_string()),
            Column::<Self>::left("FROM", |view, look| look.time(view.0.period().from)),
            Column::<Self>::left("UNTIL", |view, look| look.time(view.0.period().until)),
            Column::<Self>::left("STATE", |view, _| view.0.verdict().state.as_str().to_owned()).toned(
                |view| match view.0.verdict().state {
                    VerdictState::Good => Tone::Good,
                    VerdictState::Attention => Tone::Warning,
                    VerdictState::Bad => Tone::Bad,
                    VerdictState::Unknown => Tone::Plain,
                },
            ),
            Column::<Self>::left("VERDICT", |view, _| view.0.verdict().sentence.clone()),
        ]
    }

    fn name(&self) -> String {
        self.0.kind().to_string()
    }
}
