//! Keeps the fleet as the files of a folder say, such as a checkout that something else updates. A reconciler: it takes no
//! input. A change that loses protection waits for a person: no merge may quietly delete history.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_host::guarded_file::{self, Guard};
use holdfast_model::fleet::{FILE_BYTES_MAX, FleetFile};
use holdfast_model::text::counted;
use holdfast_model::{ErrorCode, Failure};
use jiff::Timestamp;
use parking_lot::Mutex;

use crate::core::Core;
use crate::fleet_changes::{self, Authorship, Confirmed, FILES_MAX};

/// How long after a failure the same files are tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// How many folders deep files are looked for.
const FOLDERS_DEEP_MAX: u32 = 8;

/// How the folder stands.
#[derive(Debug, Default)]
pub struct FolderState(Mutex<Option<Standing>>);

/// What became of the files that were read last.
#[derive(Debug, Clone)]
pub struct Standing {
    /// When that was found out.
    pub at: Timestamp,
    /// Why the fleet is not as they say.
    pub failure: Option<Failure>,
}

impl FolderState {
    /// How it stands; nothing before it was looked at.
    pub fn get(&self) -> Option<Standing> {
        self.0.lock().clone()
    }
}

/// Under which name the controller manages what a folder declares.
pub fn owner_of(folder: &Path) -> String {
    format!("folder:{}", folder.display())
}

/// Runs until the controller stops; ends at once when no folder is configured.
pub async fn run(core: Arc<Core>) {
    let stop = core.tasks.token().clone();
    let Some(folder) = core.config.get().fleet.folder.clone() else {
        stop.cancelled().await;
        return;
    };
    let (mut known, mut tried_at): (Option<(Vec<FleetFile>, bool)>, _) = (None, core.clock.monotonic());
    let mut failed = false;
    loop {
        let (changed, configured) = (core.definitions.changed(), core.config.changed());
        let prune = core.config.get().fleet.prune;
        let read = read(&core, &folder).await.map(|files| (files, prune));
        let is_new = read.as_ref().is_ok_and(|read| known.as_ref() != Some(read));
        let is_due = failed && core.clock.monotonic().duration_since(tried_at) >= AGAIN;
        if is_new || is_due || read.is_err() {
            tried_at = core.clock.monotonic();
            let outcome = match read {
                Ok((files, prune)) => {
                    let outcome = apply(&core, &folder, &files, prune).await;
                    known = Some((files, prune));
                    outcome
                }
                Err(failure) => Err(failure),
            };
            let before = core.fleet_folder.get().and_then(|standing| standing.failure);
            if let Err(failure) = &outcome
                && before.as_ref() != Some(failure)
            {
                tracing::error!(folder = %folder.display(), %failure, "the fleet is not as the folder says");
            }
            failed = outcome.is_err();
            *core.fleet_folder.0.lock() = Some(Standing { at: core.clock.now(), failure: outcome.err() });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            // Somebody else changed the fleet: what the folder manages may have been taken over.
            () = changed => known = None,
            () = configured => {}
            () = core.clock.sleep(core.config.get().fleet.every()) => {}
        }
    }
}

async fn apply(core: &Arc<Core>, folder: &Path, files: &[FleetFile], prune: bool) -> Result<(), Failure> {
    let authorship = Authorship { owner: Some(owner_of(folder)), prune, take_over: false };
    let current = core.definitions.current();
    let plan = fleet_changes::plan(&current, files, &authorship)
        .map_err(|errors| fleet_changes::all_in_one(&errors))?;
    if plan.changes.is_empty() && plan.foreign.is_empty() {
        return Ok(());
    }
    let owner = owner_of(folder);
    let applied =
        fleet_changes::apply(core, &owner, &plan, &authorship, &Confirmed::default(), |batch, _| batch).await;
    match applied {
        Ok(()) => {
            let changes = counted(plan.changes.len() as u64, "change");
            tracing::info!(folder = %folder.display(), changes, "the fleet is as the folder says");
            Ok(())
        }
        Err(mut failure) if failure.code == ErrorCode::NeedsConfirmation => {
            let confirm: String = failure.why.iter().map(|path| format!(" --confirm {path}")).collect();
            let prune = if prune { " --prune" } else { "" };
            failure.next = vec![format!(
                "holdfast apply -f {} --owner {owner}{prune}{confirm} --reason TEXT",
                folder.display()
            )];
            Err(failure)
        }
        Err(failure) => Err(failure),
    }
}

/// The YAML files in and below the folder, in the order of their names; hidden ones are left out.
async fn read(core: &Arc<Core>, folder: &Path) -> Result<Vec<FleetFile>, Failure> {
    let folder = folder.to_owned();
    core.blocking("read the fleet's folder", move || {
        let failed = |path: &Path, error: &std::io::Error| {
            Failure::new(ErrorCode::FileInvalid, format!("{} cannot be read", path.display()))
                .because(error.to_string())
        };
        let (mut paths, mut folders): (Vec<PathBuf>, _) = (Vec::new(), vec![(folder.clone(), 0)]);
        while let Some((inner, depth)) = folders.pop() {
            guarded_file::check_folder(&inner)?;
            for entry in std::fs::read_dir(&inner).map_err(|error| failed(&inner, &error))? {
                let path = entry.map_err(|error| failed(&inner, &error))?.path();
                // A checkout's own folder, and what a mounted folder keeps of its past.
                if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
                    continue;
                }
                let is_yaml =
                    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
                if path.is_dir() && depth < FOLDERS_DEEP_MAX {
                    folders.push((path, depth + 1));
                } else if is_yaml {
                    paths.push(path);
                }
            }
            if paths.len() > FILES_MAX {
                let message = format!("{} has more than {FILES_MAX} files", folder.display());
                return Err(Failure::new(ErrorCode::FileInvalid, message));
            }
        }
        paths.sort();
        paths.iter().map(|path| read_file(path)).collect()
    })
    .await
}

fn read_file(path: &Path) -> Result<FleetFile, Failure> {
    // A link is followed, a mounted folder may be made of them; a checkout may belong to whoever updates it.
    let text = guarded_file::read_text(path, Guard::Shared, FILE_BYTES_MAX)?;
    Ok(FleetFile { name: path.display().to_string(), text })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use holdfast_model::units::Span;
    use holdfast_runtime::{ManualClock, OnEnd};

    use super::*;
    use crate::{Assembled, Controller, ControllerConfig, reload};

    /// A controller that follows a folder, and looks at it but once a day.
    async fn following(at: &Path, folder: &Path) -> (Assembled, ControllerConfig) {
        let mut config = ControllerConfig::new(at.join("controller"));
        config.fleet = crate::config::FleetConfig { folder: Some(folder.to_owned()), ..config.fleet };
        config.fleet.prune = false;
        config.fleet.every = Span::from_hours(24);
        let clock = ManualClock::at("2026-06-01T12:00:00Z".parse().unwrap());
        (Controller::assemble(&config, &clock.shared()).await.unwrap(), config)
    }

    async fn until_declared(core: &Core, expected: &[&str]) {
        let wait = async {
            loop {
                let changed = core.definitions.changed();
                if core
                    .definitions
                    .current()
                    .fleet
                    .agents
                    .keys()
                    .map(|name| name.as_str())
                    .eq(expected.iter().copied())
                {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("the fleet is as expected in time");
    }

    #[tokio::test]
    async fn what_the_configuration_says_anew_of_pruning_holds_at_once() {
        let at = tempfile::tempdir().unwrap();
        let folder = at.path().join("fleet");
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = folder.join("fleet.yaml");
        let declare = |agents: &str| {
            std::fs::write(folder.join(".new"), format!("api: holdfast/v1\nagents: {{ {agents} }}\n"))
                .unwrap();
            std::fs::rename(folder.join(".new"), &file).unwrap();
        };
        declare("a: {}, b: {}");
        let (controller, mut config) = following(at.path(), &folder).await;
        let core = controller.core.clone();
        let running = core.tasks.spawn("fleet-folder", OnEnd::Isolated, run(core.clone()));
        until_declared(&core, &["a", "b"]).await;
        declare("a: {}, c: {}");
        // Each reading of the configuration has the folder looked at; this one does not let it prune.
        reload::reload(&core, Ok(config.clone()));
        until_declared(&core, &["a", "b", "c"]).await;
        config.fleet.prune = true;
        reload::reload(&core, Ok(config));
        until_declared(&core, &["a", "c"]).await;
        drop(running);
        controller.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_folder_in_which_everybody_may_write_is_not_followed() {
        let at = tempfile::tempdir().unwrap();
        let folder = at.path().join("fleet");
        let inner = folder.join("teams");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(inner.join("a.yaml"), "api: holdfast/v1\nagents: { a: {} }\n").unwrap();
        let (controller, _) = following(at.path(), &folder).await;
        let core = &controller.core;
        let set = |path: &Path, mode: u32| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for (path, outer, inmost, mode) in [(&folder, 0o777, 0o755, "0777"), (&inner, 0o755, 0o1777, "1777")]
        {
            set(&folder, outer);
            set(&inner, inmost);
            let failure = read(core, &folder).await.unwrap_err();
            let expected = Failure::new(ErrorCode::FileInvalid, format!("{} cannot be read", path.display()))
                .because(format!("everybody may write it (mode {mode})"))
                .then(format!("chmod o-w {}", path.display()));
            assert_eq!(failure, expected);
        }
        set(&inner, 0o775);
        assert_eq!(read(core, &folder).await.unwrap().len(), 1);
        controller.close().await.unwrap();
    }
}
