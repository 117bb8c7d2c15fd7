//! Every route there is: the router, the OpenAPI document and the check against [`crate::access`] are made from this.

use futures::future::BoxFuture;
use holdfast_model::Failure;
use holdfast_model::report::Report;
use http::StatusCode;
use schemars::{Schema, schema_for};

use super::reply::{Refusal, Reply};
use super::request::Call;
pub use super::request::{Form, Parameter};
use super::{alerts, backups, cleanup, configuration, events, monitor, openapi, reports, views};
use crate::metrics;

/// The method of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Looks.
    Get,
    /// Begins something.
    Post,
}

impl Verb {
    /// The word of HTTP.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "GET",
            Verb::Post => "POST",
        }
    }
}

/// What a route answers with when all is well.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// Items of this form in the envelope.
    Items(fn() -> Schema),
    /// Something else, of this type.
    Other(&'static str),
}

/// Another form of an answer than JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rendition {
    /// The word for `format`.
    pub word: &'static str,
    /// Its type.
    pub content_type: &'static str,
}

/// What a route answers with when it is only asked what it would do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The kind that its envelope names.
    pub kind: &'static str,
    /// The form of its items.
    pub schema: fn() -> Schema,
}

/// One route.
pub struct Route {
    /// Its method.
    pub verb: Verb,
    /// Its path, with `{NAME}` for what varies.
    pub path: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// The parameters that its query may have.
    pub query: &'static [Parameter],
    /// The form of the body that it takes.
    pub body: Option<fn() -> Schema>,
    /// The kind that its envelope names.
    pub kind: &'static str,
    /// What it answers with.
    pub answer: Answer,
    /// The other forms that it can be asked for by `format`, or a header `Accept`.
    pub forms: &'static [Rendition],
    /// The status when all is well.
    pub status: u16,
    /// What it answers instead, with status 200, when it is only asked what it would do.
    pub plan: Option<Plan>,
    /// Whether it takes a header `Idempotency-Key`.
    pub is_repeatable: bool,
    pub(super) handle: fn(Call) -> BoxFuture<'static, Result<Reply, Refusal>>,
}

impl Route {
    /// Its name in the table of [`crate::access`].
    pub fn key(&self) -> String {
        format!("{} {}", self.verb.as_str(), self.path)
    }

    const fn get(
        path: &'static str,
        about: &'static str,
        kind: &'static str,
        answer: Answer,
        handle: fn(Call) -> BoxFuture<'static, Result<Reply, Refusal>>,
    ) -> Self {
        Self {
            verb: Verb::Get,
            path,
            about,
            query: &[],
            body: None,
            kind,
            answer,
            forms: &[],
            status: 200,
            plan: None,
            is_repeatable: false,
            handle,
        }
    }
}

const SOURCE: Parameter = Parameter { name: "source", about: "Only those of this source.", form: Form::Text };
const REPOSITORY: Parameter =
    Parameter { name: "repository", about: "Only those in this repository.", form: Form::Text };
const LIMIT: Parameter =
    Parameter { name: "limit", about: "Items of a page: 1 to 1000, 100 unless given.", form: Form::Number };
const CURSOR: Parameter =
    Parameter { name: "cursor", about: "The next_cursor of the page before.", form: Form::Text };
const AFTER: Parameter = Parameter {
    name: "after",
    about: "The id of the last event that was seen; without it, events from now on.",
    form: Form::Number,
};

const TIMEZONE: Parameter = Parameter {
    name: "timezone",
    about: "The time zone of its days and times, such as Europe/Berlin; UTC unless given.",
    form: Form::Text,
};
const HOURS: Parameter = Parameter {
    name: "hours",
    about: "How many hours it covers: 1 to 744, 24 unless given.",
    form: Form::Number,
};
const FORMAT: Parameter = Parameter {
    name: "format",
    about: "json, markdown or html; without it as the header Accept asks, or json.",
    form: Form::Text,
};

/// The forms of a report besides JSON.
pub const REPORT_FORMS: &[Rendition] = &[
    Rendition { word: "markdown", content_type: "text/markdown; charset=utf-8" },
    Rendition { word: "html", content_type: "text/html; charset=utf-8" },
];
const ALL: Parameter = Parameter { name: "all", about: "Those that are over, too.", form: Form::Flag };

macro_rules! handler {
    ($function:path) => {
        |call| Box::pin(async move { $function(call).await.map_err(Refusal::from) })
    };
}

const TEXT: Answer = Answer::Other("text/plain; charset=utf-8");

/// Every route there is.
pub const ROUTES: &[Route] = &[
    Route::get("/ping", "Whether this is a controller that answers.", "", TEXT, handler!(up)),
    Route::get("/healthz", "Whether the controller is alive.", "", TEXT, handler!(up)),
    Route::get("/readyz", "Whether the controller takes work.", "", TEXT, |call| Box::pin(ready(call))),
    Route::get(
        "/metrics",
        "All metrics, for Prometheus.",
        "",
        Answer::Other(metrics::text::CONTENT_TYPE),
        handler!(all_metrics),
    ),
    Route::get(
        "/api/v1/openapi.json",
        "This document.",
        "",
        Answer::Other("application/json"),
        handler!(openapi::document),
    ),
    Route::get(
        "/api/v1/health",
        "How the fleet is, as a score from 0 to 1 with the reason of each deduction.",
        "HealthList",
        Answer::Items(|| schema_for!(crate::fleet_health::Health)),
        handler!(monitor::health),
    ),
    Route::get(
        "/api/v1/stats",
        "Counts of sources, agents and runs, and sizes of repositories.",
        "StatsList",
        Answer::Items(|| schema_for!(views::StatsView)),
        handler!(monitor::stats),
    ),
    Route {
        query: &[SOURCE, REPOSITORY, LIMIT, CURSOR],
        ..Route::get(
            "/api/v1/backups",
            "Snapshots, newest first, page by page.",
            "SnapshotList",
            Answer::Items(|| schema_for!(views::SnapshotView)),
            handler!(backups::list),
        )
    },
    Route {
        verb: Verb::Post,
        body: Some(|| schema_for!(backups::StartBackup)),
        status: 202,
        is_repeatable: true,
        ..Route::get(
            "/api/v1/backups",
            "Queues a backup: one run for each repository of the source.",
            "RunList",
            Answer::Items(|| schema_for!(views::RunView)),
            handler!(backups::start),
        )
    },
    Route::get(
        "/api/v1/backups/{id}",
        "One snapshot with its manifest, by its id or the beginning of it.",
        "SnapshotList",
        Answer::Items(|| schema_for!(views::SnapshotView)),
        handler!(backups::show),
    ),
    Route {
        verb: Verb::Post,
        status: 202,
        is_repeatable: true,
        ..Route::get(
            "/api/v1/backups/{id}/verify",
            "Queues the reading of every byte of a snapshot.",
            "RunList",
            Answer::Items(|| schema_for!(views::RunView)),
            handler!(backups::verify),
        )
    },
    Route::get(
        "/api/v1/runs/{id}",
        "One run, by its id or the end of it.",
        "RunList",
        Answer::Items(|| schema_for!(views::RunView)),
        handler!(backups::run),
    ),
    Route {
        verb: Verb::Post,
        body: Some(|| schema_for!(cleanup::CleanUp)),
        ..Route::get(
            "/api/v1/cleanup",
            "What policies do not keep; with `dry_run: false` it is removed.",
            "RetentionDecisionList",
            Answer::Items(|| schema_for!(views::RetentionView)),
            handler!(cleanup::clean_up),
        )
    },
    Route {
        verb: Verb::Post,
        body: Some(|| schema_for!(cleanup::Prune)),
        status: 202,
        plan: Some(Plan { kind: "PrunePlanList", schema: || schema_for!(views::PrunePlanView) }),
        is_repeatable: true,
        ..Route::get(
            "/api/v1/repositories/{name}/prune",
            "What a prune of a repository would free; with `dry_run: false` it is queued.",
            "RunList",
            Answer::Items(|| schema_for!(views::RunView)),
            handler!(cleanup::prune),
        )
    },
    Route {
        query: &[ALL],
        ..Route::get(
            "/api/v1/alerts",
            "What is wrong, the worst first.",
            "AlertList",
            Answer::Items(|| schema_for!(views::AlertView)),
            handler!(alerts::list),
        )
    },
    Route::get(
        "/api/v1/alerts/{id}",
        "One alert.",
        "AlertList",
        Answer::Items(|| schema_for!(views::AlertView)),
        handler!(alerts::show),
    ),
    Route {
        verb: Verb::Post,
        body: Some(|| schema_for!(alerts::Acknowledge)),
        is_repeatable: true,
        ..Route::get(
            "/api/v1/alerts/{id}/ack",
            "Says that somebody has seen an alert: it is told again only if it becomes worse.",
            "AlertList",
            Answer::Items(|| schema_for!(views::AlertView)),
            handler!(alerts::acknowledge),
        )
    },
    Route::get(
        "/api/v1/silences",
        "Silences that have not ended.",
        "SilenceList",
        Answer::Items(|| schema_for!(views::SilenceView)),
        handler!(alerts::silences),
    ),
    Route {
        verb: Verb::Post,
        body: Some(|| schema_for!(alerts::PlaceSilence)),
        is_repeatable: true,
        ..Route::get(
            "/api/v1/silences",
            "Keeps alerts quiet for a time.",
            "SilenceList",
            Answer::Items(|| schema_for!(views::SilenceView)),
            handler!(alerts::silence),
        )
    },
    Route {
        verb: Verb::Post,
        is_repeatable: true,
        ..Route::get(
            "/api/v1/silences/{id}/end",
            "Ends a silence before its time; answers those that are left.",
            "SilenceList",
            Answer::Items(|| schema_for!(views::SilenceView)),
            handler!(alerts::end_silence),
        )
    },
    Route::get(
        "/api/v1/config",
        "What is declared and how the controller is configured; secrets are masked.",
        "ConfigList",
        Answer::Items(|| schema_for!(views::ConfigView)),
        handler!(configuration::show),
    ),
    Route::get(
        "/api/v1/sources/{name}/status",
        "What would be lost of a source now, how long a restore takes, and when that was proven.",
        "SourceStatusList",
        Answer::Items(|| schema_for!(views::SourceStatusView)),
        handler!(monitor::source),
    ),
    Route::get(
        "/api/v1/monitor/quick",
        "The state of all in a few numbers.",
        "QuickList",
        Answer::Items(|| schema_for!(views::QuickView)),
        handler!(monitor::quick),
    ),
    Route::get(
        "/api/v1/monitor/database",
        "The state of each source.",
        "SourceStatusList",
        Answer::Items(|| schema_for!(views::SourceStatusView)),
        handler!(monitor::database),
    ),
    Route::get(
        "/api/v1/monitor/performance",
        "How long runs take, how many fail, and what is under way.",
        "PerformanceList",
        Answer::Items(|| schema_for!(views::PerformanceView)),
        handler!(monitor::performance),
    ),
    Route::get(
        "/api/v1/monitor/overview",
        "Health, counts and the state of each source together.",
        "OverviewList",
        Answer::Items(|| schema_for!(views::OverviewView)),
        handler!(monitor::overview),
    ),
    Route {
        query: &[FORMAT, TIMEZONE],
        forms: REPORT_FORMS,
        ..Route::get(
            "/api/v1/reports/daily",
            "What the last day brought, and how the fleet stands.",
            "ReportList",
            Answer::Items(|| schema_for!(Report)),
            handler!(reports::daily),
        )
    },
    Route {
        query: &[FORMAT, TIMEZONE],
        forms: REPORT_FORMS,
        ..Route::get(
            "/api/v1/reports/weekly",
            "What the last seven days brought, and how the fleet stands.",
            "ReportList",
            Answer::Items(|| schema_for!(Report)),
            handler!(reports::weekly),
        )
    },
    Route {
        query: &[FORMAT, TIMEZONE, HOURS, SOURCE],
        forms: REPORT_FORMS,
        ..Route::get(
            "/api/v1/reports/logs",
            "What came of the runs of the last hours: how they ended, how long they took, why they failed.",
            "ReportList",
            Answer::Items(|| schema_for!(Report)),
            handler!(reports::logs),
        )
    },
    Route {
        query: &[AFTER],
        ..Route::get(
            "/api/v1/events",
            "Changes of runs, snapshots, holds, definitions and agents as they happen (server-sent events).",
            "",
            Answer::Other("text/event-stream"),
            handler!(events::watch),
        )
    },
];

async fn up(_: Call) -> Result<Reply, Failure> {
    Ok(Reply::Document("text/plain; charset=utf-8", "ok\n".to_owned()))
}

async fn ready(call: Call) -> Result<Reply, Refusal> {
    let core = call.core();
    let is_readable = core.records.run(holdfast_model::ids::RunId::at(0, [0; 10])).await.is_ok();
    if is_readable && !core.tasks.token().is_cancelled() {
        return Ok(Reply::Document("text/plain; charset=utf-8", "ok\n".to_owned()));
    }
    let failure =
        Failure::new(holdfast_model::ErrorCode::StateUnavailable, "the controller takes no work now");
    Err(Refusal { status: StatusCode::SERVICE_UNAVAILABLE, failure })
}

async fn all_metrics(call: Call) -> Result<Reply, Failure> {
    let families = metrics::collect(call.core()).await?;
    Ok(Reply::Document(metrics::text::CONTENT_TYPE, metrics::text::render(&families)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::access::METHODS;

    #[test]
    fn every_route_has_exactly_one_row_in_the_table_of_access() {
        let routes: Vec<String> = ROUTES.iter().map(Route::key).collect();
        let rows: Vec<&str> =
            METHODS.iter().map(|(path, _)| *path).filter(|path| !path.starts_with('/')).collect();
        assert_eq!(rows.len(), routes.len());
        let (routes, rows): (BTreeSet<&str>, BTreeSet<&str>) =
            (routes.iter().map(String::as_str).collect(), rows.into_iter().collect());
        assert_eq!(routes, rows);
    }

    #[test]
    fn what_begins_runs_can_be_repeated_and_answers_that_it_was_accepted() {
        for route in ROUTES.iter().filter(|route| route.verb == Verb::Post) {
            let begins_runs = route.kind == "RunList";
            assert_eq!(route.status, if begins_runs { 202 } else { 200 }, "{}", route.key());
            // To clean up again removes nothing more.
            assert!(route.is_repeatable || route.path == "/api/v1/cleanup", "{}", route.key());
        }
        let looks = |route: &&Route| route.verb == Verb::Get;
        assert!(ROUTES.iter().filter(looks).all(|route| route.body.is_none() && route.status == 200));
    }
}
