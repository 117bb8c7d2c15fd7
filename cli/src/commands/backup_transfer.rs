//! `holdfast backup export` and `holdfast backup import`

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use holdfast_model::ErrorCode;
use holdfast_proto::v1;
use holdfast_runtime::durable_file::{Access, DurableFile};

use crate::app::App;
use crate::args::backup::{BackupExportArgs, BackupImportArgs};
use crate::client::Replies;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::text::{duration, short_snapshot, size};
use crate::references::SnapshotReference;
use crate::views::snapshot::SnapshotView;

pub(super) async fn export(app: &mut App, args: BackupExportArgs) -> CliResult {
    let reference: SnapshotReference = args.snapshot.parse()?;
    if args.file == "-" && std::io::stdout().is_terminal() {
        return Err(CliError::usage("an export is not written to a terminal")
            .then("holdfast backup export SNAPSHOT -o FILE.tar.zst"));
    }
    let path = PathBuf::from(&args.file);
    if args.file != "-" && path.symlink_metadata().is_ok() {
        return Err(exists(&path));
    }
    let client = app.connect().await?;
    let id = app.snapshot_id(&client, &reference).await?;
    let began = app.clock.monotonic();
    let replies = client.export_snapshot(v1::ExportSnapshotRequest { id }).await?;
    if args.file == "-" {
        copy_to_output(app, replies).await?;
        return Ok(ExitStatus::Ok);
    }
    let bytes = copy_to_file(replies, &path).await?;
    let took = app.clock.monotonic().saturating_duration_since(began);
    app.output.note(&format!("{}   {}   {}", path.display(), size(bytes), duration(took)));
    app.output.next(&[
        format!("tar --zstd -tf {}", path.display()),
        format!("holdfast backup import {} --repo REPO --source SOURCE", path.display()),
    ]);
    Ok(ExitStatus::Ok)
}

fn exists(path: &Path) -> CliError {
    CliError::new(ErrorCode::TargetExists, format!("{} exists already", path.display()))
        .at_stake("nothing was written")
}

async fn copy_to_output(app: &mut App, mut replies: Replies<v1::ExportSnapshotResponse>) -> CliResult<()> {
    while let Some(part) = replies.next().await? {
        app.output.write_bytes(&part.data)?;
    }
    app.output.finish_bytes()
}

/// The file appears under its name when all of it is on the disk, and not before.
async fn copy_to_file(mut replies: Replies<v1::ExportSnapshotResponse>, path: &Path) -> CliResult<u64> {
    let failed = |error: &std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => exists(path),
        _ => CliError::file("writing", path, error).at_stake("no file was made"),
    };
    let mut file = DurableFile::create(path, Access::Owner).map_err(|error| failed(&error))?;
    let mut bytes = 0;
    while let Some(part) = replies.next().await? {
        file.write_all(&part.data).map_err(|error| failed(&error))?;
        bytes += part.data.len() as u64;
    }
    if bytes == 0 {
        return Err(CliError::new(ErrorCode::ExportDamaged, "the controller sent nothing")
            .at_stake("no file was made"));
    }
    file.commit_new().map_err(|error| failed(&error))?;
    Ok(bytes)
}

pub(super) async fn import(app: &mut App, args: BackupImportArgs) -> CliResult {
    let metadata =
        std::fs::metadata(&args.file).map_err(|error| CliError::file("opening", &args.file, &error))?;
    if metadata.is_dir() {
        return Err(CliError::new(ErrorCode::PathInvalid, format!("{} is a folder", args.file.display())));
    }
    let client = app.connect().await?;
    let file_name = args.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let header = v1::ImportHeader { repository: args.repo, source: args.source, file_name };
    let reply = client.import_snapshot(header, &args.file).await?;
    let view = SnapshotView::from(reply.snapshot.unwrap_or_default());
    app.output.show(&view, |_| {
        format!(
            "snapshot {} of {} in {}   {}   added {}\n",
            short_snapshot(&view.id),
            view.source.as_deref().unwrap_or("-"),
            view.repository,
            size(view.logical_bytes),
            size(view.stored_bytes)
        )
    })?;
    app.output.next(&[format!("holdfast backup verify {}", short_snapshot(&view.id))]);
    Ok(ExitStatus::Ok)
}
