//! `holdfast apply`, `validate`, `diff`, `export`, `schema`

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use holdfast_model::fleet::{self, FILE_BYTES_MAX, Fleet, FleetFile};
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1;

use crate::app::App;
use crate::args::fleet::{ApplyArgs, AuthorshipArgs, DiffArgs, ExportArgs, ValidateArgs};
use crate::client::Client;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::text::{counted, plain, shell_word};
use crate::output::{Look, OutputFormat};
use crate::views::fleet::{ChangeView, ProblemView};

/// How many files are read at once.
const FILES_MAX: usize = 10_000;

pub(super) async fn apply(app: &mut App, args: ApplyArgs) -> CliResult {
    let files = read_files(&args.files.files)?;
    let client = app.connect().await?;
    let changes = changes_of(app, &client, &files, &args.authorship).await?;
    if args.dry_run || changes.is_empty() {
        print_changes(app, &changes)?;
        return Ok(if changes.is_empty() { ExitStatus::Ok } else { ExitStatus::ChangesPending });
    }
    if app.output.is_human() {
        print_changes(app, &changes)?;
        app.output.finish()?;
    }
    let (confirm, reason) = confirm(app, &changes)?;
    let request = v1::ApplyRequest {
        idempotency_key: app.idempotency_key(),
        files: on_the_wire(&files),
        prune: args.authorship.prune,
        confirm,
        reason,
        owner: args.authorship.owner.clone().unwrap_or_default(),
        take_over: args.authorship.take_over,
    };
    let applied: Vec<ChangeView> =
        client.apply_fleet(request).await?.changes.into_iter().map(ChangeView::from).collect();
    if app.output.is_human() {
        app.output.note(&format!("{} applied", counted(applied.len() as u64, "change")));
        if applied.iter().any(|change| change.path.starts_with("policies.")) {
            app.output.next(&["holdfast policy next".to_owned()]);
        }
    } else {
        app.output.list(&applied, "")?;
    }
    Ok(ExitStatus::Ok)
}

/// Each dangerous change is confirmed by its own path; one reason serves all.
fn confirm(app: &App, changes: &[ChangeView]) -> CliResult<(Vec<String>, String)> {
    let dangerous: Vec<&ChangeView> = changes.iter().filter(|change| change.dangerous).collect();
    let consent = &app.settings.consent;
    let missing: Vec<&str> = dangerous
        .iter()
        .map(|change| change.path.as_str())
        .filter(|path| !consent.confirm.iter().any(|given| given == path))
        .collect();
    if !consent.interactive && !missing.is_empty() {
        let flags: String = missing.iter().map(|path| format!(" --confirm {}", shell_word(path))).collect();
        let reason = if consent.reason.is_some() { "" } else { " --reason TEXT" };
        let message = format!("data or protection is lost by what happens to {}", missing.join(", "));
        return Err(CliError::new(ErrorCode::NeedsConfirmation, plain(&message))
            .at_stake("nothing was changed")
            .then(format!("{}{flags}{reason}", consent.command)));
    }
    let mut confirmed = Vec::new();
    let mut reason = app.settings.consent.reason.clone().unwrap_or_default();
    for change in dangerous {
        let mut consent = app.settings.consent.clone();
        if !reason.is_empty() {
            consent.reason = Some(reason.clone());
        }
        let what = format!("{} {} loses data or protection", change.action, plain(&change.path));
        let given = crate::confirm::typed_name(&consent, &mut crate::confirm::Terminal, &what, &change.path)?;
        reason = given.reason;
        confirmed.push(given.name);
    }
    Ok((confirmed, reason))
}

/// Applies one text that declares something new.
pub(super) async fn apply_text(app: &mut App, client: &Client, name: &str, text: String) -> CliResult<()> {
    let files = [FleetFile { name: name.to_owned(), text }];
    let request = v1::ApplyRequest {
        idempotency_key: app.idempotency_key(),
        files: on_the_wire(&files),
        ..v1::ApplyRequest::default()
    };
    client.apply_fleet(request).await?;
    Ok(())
}

async fn changes_of(
    app: &mut App,
    client: &Client,
    files: &[FleetFile],
    authorship: &AuthorshipArgs,
) -> CliResult<Vec<ChangeView>> {
    let request = v1::DiffRequest {
        files: on_the_wire(files),
        prune: authorship.prune,
        owner: authorship.owner.clone().unwrap_or_default(),
        take_over: authorship.take_over,
    };
    let reply = client.diff_fleet(request).await?;
    let problems: Vec<ProblemView> = reply.problems.into_iter().map(ProblemView::from).collect();
    if !problems.is_empty() {
        return Err(tell_problems(app, &problems));
    }
    Ok(reply.changes.into_iter().map(ChangeView::from).collect())
}

fn on_the_wire(files: &[FleetFile]) -> Vec<v1::FleetFile> {
    files.iter().map(|file| v1::FleetFile { name: file.name.clone(), text: file.text.clone() }).collect()
}

/// Prints every problem on standard error in the form that editors understand, and gives the error for the end.
fn tell_problems(app: &mut App, problems: &[ProblemView]) -> CliError {
    let code =
        problems.first().and_then(|problem| problem.code.parse().ok()).unwrap_or(ErrorCode::FileInvalid);
    for problem in problems {
        app.output.error_line(&plain(&problem.line()));
    }
    CliError::new(code, format!("the files are not valid: {}", counted(problems.len() as u64, "problem")))
        .at_stake("nothing was changed")
        .then("holdfast schema > fleet.schema.json    # for an editor that checks while you type")
}

/// What policies promise to sources of the same files and can not keep.
fn broken_promises(declared: &Fleet, files: &[FleetFile]) -> Vec<ProblemView> {
    let mut errors = declared.check_references(&Fleet::default());
    errors.retain(|error| error.code != ErrorCode::ReferenceUnknown);
    fleet::locate(&mut errors, files);
    errors.iter().map(ProblemView::from).collect()
}

pub(super) async fn validate(app: &mut App, args: ValidateArgs) -> CliResult {
    let files = read_files(&args.files.files)?;
    let mut problems: Vec<ProblemView> = match fleet::read_fleet(&files) {
        Ok(fleet) => broken_promises(&fleet, &files),
        Err(errors) => errors.iter().map(ProblemView::from).collect(),
    };
    // Only a controller knows what names outside the files stand for.
    let asked = !args.offline && problems.is_empty() && app.connection().is_ok();
    if asked {
        let client = app.connect().await?;
        let reply = client.validate_fleet(v1::ValidateRequest { files: on_the_wire(&files) }).await?;
        problems = reply.problems.into_iter().map(ProblemView::from).collect();
    }
    if app.output.is_human() {
        if !problems.is_empty() {
            return Err(tell_problems(app, &problems));
        }
        let scope =
            if asked { "" } else { "; names outside the files were not checked: no controller was asked" };
        app.output.note(&format!("{} valid{scope}", counted(files.len() as u64, "file")));
        return Ok(ExitStatus::Ok);
    }
    app.output.list(&problems, "")?;
    Ok(if problems.is_empty() { ExitStatus::Ok } else { ExitStatus::Usage })
}

pub(super) async fn diff(app: &mut App, args: DiffArgs) -> CliResult {
    let files = read_files(&args.files.files)?;
    let changes = if args.against.is_empty() {
        let client = app.connect().await?;
        changes_of(app, &client, &files, &args.authorship).await?
    } else {
        let wanted = local_fleet(app, &files)?;
        let current = local_fleet(app, &read_files(&args.against)?)?;
        fleet::diff(&current, &wanted, args.authorship.prune).into_iter().map(ChangeView::from).collect()
    };
    print_changes(app, &changes)?;
    Ok(if changes.is_empty() { ExitStatus::Ok } else { ExitStatus::ChangesPending })
}

fn local_fleet(app: &mut App, files: &[FleetFile]) -> CliResult<Fleet> {
    fleet::read_fleet(files).map_err(|errors| {
        let problems: Vec<ProblemView> = errors.iter().map(ProblemView::from).collect();
        tell_problems(app, &problems)
    })
}

fn print_changes(app: &mut App, changes: &[ChangeView]) -> CliResult<()> {
    if !app.output.is_human() {
        return app.output.list(changes, "");
    }
    if changes.is_empty() {
        app.output.note("no difference");
        return Ok(());
    }
    let text = render_changes(changes, app.output.look());
    app.output.write(&text)
}

fn render_changes(changes: &[ChangeView], look: &Look) -> String {
    let mut text = String::new();
    for change in changes {
        let sign = match change.action.as_str() {
            "create" => look.palette.good(change.sign()),
            "remove" => look.palette.bad(change.sign()),
            _ => look.palette.warning(change.sign()),
        };
        let danger = if change.dangerous {
            look.palette.warning("   must be confirmed by name")
        } else {
            String::new()
        };
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{sign} {}{danger}", plain(&change.path));
        for detail in &change.details {
            let _ = writeln!(text, "    {}", plain(detail));
        }
    }
    let count = |action: &str| changes.iter().filter(|change| change.action == action).count();
    let _ = writeln!(
        text,
        "{} to create, {} to update, {} to remove",
        count("create"),
        count("update"),
        count("remove")
    );
    text
}

pub(super) async fn export(app: &mut App, args: &ExportArgs) -> CliResult {
    let client = app.connect().await?;
    let reply = client.export_fleet(v1::ExportRequest { effective: args.effective }).await?;
    match app.output.format() {
        OutputFormat::Table | OutputFormat::Wide | OutputFormat::Yaml => app.output.write(&reply.yaml)?,
        OutputFormat::Json | OutputFormat::Jsonl => {
            let document: serde_json::Value = fleet::read_yaml("the controller's export", &reply.yaml)
                .map_err(|error| CliError::from(Failure::from(&error)))?;
            app.output.write(&format!("{document:#}\n"))?;
        }
        OutputFormat::Name | OutputFormat::Csv | OutputFormat::Markdown => {
            return Err(CliError::usage("a fleet is exported as yaml or json"));
        }
    }
    Ok(ExitStatus::Ok)
}

pub(super) fn schema(app: &mut App) -> CliResult {
    app.output.write(&format!("{:#}\n", fleet::json_schema()))?;
    Ok(ExitStatus::Ok)
}

/// The files of the paths, folders with every `*.yaml` and `*.yml` in and below them, in the order of their names.
fn read_files(paths: &[PathBuf]) -> CliResult<Vec<FleetFile>> {
    let mut files = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            files.push(read_text(std::io::stdin(), Path::new("standard input"))?);
            continue;
        }
        let metadata = std::fs::metadata(path).map_err(|error| CliError::file("reading", path, &error))?;
        if metadata.is_dir() {
            let before = files.len();
            read_folder(path, &mut files)?;
            if files.len() == before {
                return Err(CliError::new(
                    ErrorCode::FileInvalid,
                    format!("{} has no *.yaml file", path.display()),
                ));
            }
        } else {
            files.push(read_file(path)?);
        }
    }
    Ok(files)
}

fn read_folder(folder: &Path, files: &mut Vec<FleetFile>) -> CliResult<()> {
    let failed = |error: &std::io::Error| CliError::file("reading", folder, error);
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(|error| failed(&error))?;
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let yaml = path.extension().is_some_and(|end| end == "yaml" || end == "yml");
        let metadata = std::fs::symlink_metadata(&path).map_err(|error| failed(&error))?;
        if hidden {
            continue;
        }
        // A link to a folder could lead round in a circle.
        if metadata.is_dir() {
            read_folder(&path, files)?;
        } else if yaml {
            if files.len() >= FILES_MAX {
                return Err(CliError::new(
                    ErrorCode::FileInvalid,
                    format!("there are more than {FILES_MAX} files"),
                ));
            }
            files.push(read_file(&path)?);
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> CliResult<FleetFile> {
    let file = std::fs::File::open(path).map_err(|error| CliError::file("reading", path, &error))?;
    read_text(file, path)
}

fn read_text(from: impl std::io::Read, path: &Path) -> CliResult<FleetFile> {
    let mut bytes = Vec::new();
    from.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| CliError::file("reading", path, &error))?;
    let name = path.display().to_string();
    match String::from_utf8(bytes) {
        Ok(text) => Ok(FleetFile { name, text }),
        Err(_) => {
            let message = format!("{}: the file is not UTF-8 text; save it as UTF-8", plain(&name));
            Err(CliError::new(ErrorCode::FileInvalid, message).at_stake("nothing was changed"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::look;

    fn change(path: &str, action: &str, details: &[&str], dangerous: bool) -> ChangeView {
        ChangeView {
            path: path.to_owned(),
            action: action.to_owned(),
            details: details.iter().map(|detail| (*detail).to_owned()).collect(),
            dangerous,
        }
    }

    #[test]
    fn changes_are_shown_with_their_keys() {
        let changes = [
            change("repositories.main", "update", &["compression_level: 3 → 6"], false),
            change("sources.shop", "create", &[], false),
            change("sources.old", "remove", &[], true),
        ];
        insta::assert_snapshot!(render_changes(&changes, &look()), @r#"
        ~ repositories.main
            compression_level: 3 → 6
        + sources.shop
        - sources.old   must be confirmed by name
        1 to create, 1 to update, 1 to remove
        "#);
    }

    #[test]
    fn promises_to_sources_of_the_same_files_are_checked_without_a_controller() {
        let text = "api: holdfast/v1
policies:
  p: { objectives: { rpo: 5m }, schedule: { full: { every: 1h }, log: stream } }
sources:
  a: { engine: sqlite, agent: x, path: /a, policy: p, to: [elsewhere] }
";
        let files = [FleetFile { name: "fleet.yaml".to_owned(), text: text.to_owned() }];
        let problems = broken_promises(&fleet::read_fleet(&files).unwrap(), &files);
        let lines: Vec<String> = problems.iter().map(ProblemView::line).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("fleet.yaml:5:52: ") && lines[0].contains("HF-1014"), "{lines:?}");
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_names_without_hidden_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", ".hidden.yaml", "notes.txt", "sub/c.yaml"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let files = read_files(&[folder.path().to_owned()]).unwrap();
        let texts: Vec<&str> = files.iter().map(|file| file.text.as_str()).collect();
        assert_eq!(texts, ["a.yml", "b.yaml", "sub/c.yaml"]);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read_files(&[folder.path().to_owned()]).unwrap_err().code(), ErrorCode::FileInvalid);
        let missing = folder.path().join("missing.yaml");
        assert_eq!(read_files(&[missing]).unwrap_err().code(), ErrorCode::PathInvalid);
    }
}
