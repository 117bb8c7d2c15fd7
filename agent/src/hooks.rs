//! Hooks: commands of the agent's own configuration that run around a capture or a swap. The controller knows their
//! names only.
//!
//! A hook gets an empty environment with `HOLDFAST_RUN` and `HOLDFAST_SOURCE`, and the folder `/`. Whatever of its
//! process group is left when it ends is killed: a service is started through its service manager.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use holdfast_engines::{EngineError, RunLog};
use holdfast_host::tool::{ToolCommand, ToolExit, ToolInput, ToolOutput};
use holdfast_model::ids::{HookName, RunId, SourceName};
use holdfast_model::source::Hooks;
use holdfast_model::text::size;
use holdfast_model::{ErrorCode, Failure};
use holdfast_runtime::{OnEnd, TaskGroup};
use tokio_util::sync::CancellationToken;

use crate::config::Hook;
use crate::run_log::printable_lines;

/// How many bytes of a hook's output reach the log of the run; the rest is read and left out.
const OUTPUT_BYTES_MAX: usize = 16 * 1024;

/// Where a program given by its bare name is looked for.
const SEARCH_PATH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The hooks of one run, resolved before anything is done: a name that the configuration lacks is found out in time.
#[derive(Debug, Clone)]
pub struct RunHooks {
    before: Option<(HookName, Hook)>,
    after: Option<(HookName, Hook)>,
    run: RunId,
    source: SourceName,
    tasks: TaskGroup,
}

impl RunHooks {
    /// Looks up the hooks that a source names.
    ///
    /// # Errors
    /// `HF-5003` names the hook that the configuration lacks.
    pub fn resolve(
        wanted: &Hooks,
        configured: &BTreeMap<HookName, Hook>,
        run: RunId,
        source: &SourceName,
        tasks: &TaskGroup,
    ) -> Result<Self, Failure> {
        let find = |name: &Option<HookName>| match name {
            None => Ok(None),
            Some(name) => {
                configured.get(name).map(|hook| Some((name.clone(), hook.clone()))).ok_or_else(|| {
                    Failure::new(
                        ErrorCode::HookUnknown,
                        format!("the agent's configuration has no hook {name}"),
                    )
                    .at_stake("nothing was captured or restored")
                })
            }
        };
        Ok(Self {
            before: find(&wanted.before)?,
            after: find(&wanted.after)?,
            run,
            source: source.clone(),
            tasks: tasks.clone(),
        })
    }

    /// The hook that follows the work.
    pub fn name_of_after(&self) -> Option<&HookName> {
        self.after.as_ref().map(|(name, _)| name)
    }

    /// Runs the hook that must succeed before the work may begin. A cancelled run cancels it.
    ///
    /// # Errors
    /// `HF-5002` with the end of what it said, `HF-4010` when the run was cancelled.
    pub async fn before(&self, log: &dyn RunLog, cancel: &CancellationToken) -> Result<(), Failure> {
        match &self.before {
            Some((name, hook)) => self.execute(name, hook, log, cancel).await,
            None => Ok(()),
        }
    }

    /// Runs the hook that follows the work, however that ended. Neither a failure nor a cancelled run keeps it from
    /// being run; a failure is a warning of the run.
    pub async fn after(&self, log: &dyn RunLog) {
        if let Some((name, hook)) = &self.after
            && let Err(failure) = self.execute(name, hook, log, &CancellationToken::new()).await
        {
            log.warn(&failure.to_string());
        }
    }

    async fn execute(
        &self,
        name: &HookName,
        hook: &Hook,
        log: &dyn RunLog,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let (program, arguments) =
            hook.command.split_first().expect("the configuration refuses an empty command");
        let failed = |error: EngineError| {
            Failure::new(error_code(&error), format!("hook {name} failed"))
                .because(error.to_string())
                .at_stake("the work that it was to prepare was not begun, or is done")
        };
        let command = ToolCommand::new(find_program(program))
            .map_err(failed)?
            .args(arguments)
            .env("HOLDFAST_RUN", self.run.to_string())
            .env("HOLDFAST_SOURCE", self.source.as_str())
            .deadline(hook.timeout);
        log.info(&format!("hook {name} begins"));
        let exit = self.run_to_end(&command, log, name, cancel).await.map_err(failed)?;
        let elapsed = exit.elapsed;
        for line in exit.stderr.last_lines(100).lines() {
            log.info(&format!("hook {name}: {line}"));
        }
        exit.into_success().map_err(failed)?;
        log.info(&format!("hook {name} ended well after {:.1} s", elapsed.as_secs_f64()));
        Ok(())
    }

    async fn run_to_end(
        &self,
        command: &ToolCommand,
        log: &dyn RunLog,
        name: &HookName,
        cancel: &CancellationToken,
    ) -> Result<ToolExit, EngineError> {
        let mut tool = command.spawn(ToolInput::Empty, ToolOutput::Piped, cancel)?;
        let mut stdout = tool.take_stdout().expect("it was spawned with its output piped");
        let reading = self.tasks.spawn_blocking("hook output", OnEnd::Isolated, move || {
            let mut kept = Vec::new();
            // What cannot be read is lost; how the hook ended is what counts.
            let _ = stdout.by_ref().take(OUTPUT_BYTES_MAX as u64).read_to_end(&mut kept);
            let left_out = std::io::copy(&mut stdout, &mut std::io::sink()).unwrap_or(0);
            (kept, left_out)
        });
        let exit = tool.wait().await?;
        if let Ok((kept, left_out)) = reading.join().await {
            for line in printable_lines(&String::from_utf8_lossy(&kept)) {
                log.info(&format!("hook {name}: {line}"));
            }
            if left_out > 0 {
                log.info(&format!("hook {name}: {} more of its output are left out", size(left_out)));
            }
        }
        Ok(exit)
    }
}

/// A bare name is looked for where programs of the system lie; whatever search path this process has does not count.
fn find_program(program: &str) -> PathBuf {
    let bare = !program.contains('/');
    let found = SEARCH_PATH.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.is_file());
    found.filter(|_| bare).unwrap_or_else(|| PathBuf::from(program))
}

fn error_code(error: &EngineError) -> ErrorCode {
    match error.code() {
        ErrorCode::RunCancelled => ErrorCode::RunCancelled,
        _ => ErrorCode::HookFailed,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use holdfast_runtime::Shutdown;

    use super::*;
    use crate::run_log::testing::MemoryLog;

    fn script(folder: &Path, name: &str, text: &str) -> Hook {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Hook {
            command: vec![path.display().to_string(), "an argument".to_owned()],
            timeout: Duration::from_secs(120),
        }
    }

    fn hooks(
        configured: &[(&str, Hook)],
        before: Option<&str>,
        after: Option<&str>,
    ) -> Result<RunHooks, Failure> {
        let name = |text: &str| HookName::new(text).unwrap();
        let configured = configured.iter().map(|(text, hook)| (name(text), hook.clone())).collect();
        let wanted = Hooks { before: before.map(name), after: after.map(name) };
        let tasks = TaskGroup::new(&Shutdown::new());
        let run = RunId::at(1, [7; 10]);
        RunHooks::resolve(&wanted, &configured, run, &SourceName::new("shop").unwrap(), &tasks)
    }

    #[tokio::test]
    async fn a_hook_sees_run_and_source_and_nothing_else_of_the_agents_environment() {
        let folder = tempfile::tempdir().unwrap();
        let seen = folder.path().join("seen");
        let hook =
            script(folder.path(), "stop", &format!("/usr/bin/env > {}; echo \"$1\"; pwd", seen.display()));
        let log = MemoryLog::default();
        let hooks = hooks(&[("stop", hook)], Some("stop"), None).unwrap();
        hooks.before(&log, &CancellationToken::new()).await.unwrap();
        let seen = std::fs::read_to_string(seen).unwrap();
        // A shell adds these three by itself.
        let mut own: Vec<&str> = seen
            .lines()
            .filter(|line| !["PWD=", "SHLVL=", "_="].iter().any(|name| line.starts_with(name)))
            .collect();
        own.sort_unstable();
        assert_eq!(own, [format!("HOLDFAST_RUN={}", RunId::at(1, [7; 10])).as_str(), "HOLDFAST_SOURCE=shop"]);
        let lines = log.infos();
        assert!(lines.contains(&"hook stop: an argument".to_owned()), "{lines:?}");
        assert!(lines.contains(&"hook stop: /".to_owned()), "{lines:?}");
    }

    #[tokio::test]
    async fn a_hook_before_that_fails_is_an_error_with_what_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let hook = script(folder.path(), "stop", "echo 'the app will not stop' >&2; exit 3");
        let hooks = hooks(&[("stop", hook)], Some("stop"), None).unwrap();
        let log = MemoryLog::default();
        let failure = hooks.before(&log, &CancellationToken::new()).await.unwrap_err();
        assert_eq!(failure.to_string(), "[HF-5002] hook stop failed: stop ended with exit status 3");
        assert!(log.infos().contains(&"hook stop: the app will not stop".to_owned()));
    }

    #[tokio::test]
    async fn a_hook_after_that_fails_is_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        let hook = script(folder.path(), "start", "exit 1");
        let log = MemoryLog::default();
        hooks(&[("start", hook)], None, Some("start")).unwrap().after(&log).await;
        assert_eq!(log.warnings(), ["[HF-5002] hook start failed: start ended with exit status 1"]);
    }

    #[tokio::test]
    async fn a_hook_that_takes_too_long_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut hook = script(folder.path(), "stop", "sleep 600");
        hook.timeout = Duration::from_millis(200);
        let hooks = hooks(&[("stop", hook)], Some("stop"), None).unwrap();
        let failure = hooks.before(&MemoryLog::default(), &CancellationToken::new()).await.unwrap_err();
        assert_eq!(failure.to_string(), "[HF-5002] hook stop failed: stop did not end within 0.2 s");
    }

    #[tokio::test]
    async fn a_chatty_hook_fills_the_log_up_to_a_limit_only() {
        let folder = tempfile::tempdir().unwrap();
        let hook = script(folder.path(), "stop", "head -c 3000000 /dev/zero | tr '\\0' 'x\\n'");
        let log = MemoryLog::default();
        let hooks = hooks(&[("stop", hook)], Some("stop"), None).unwrap();
        hooks.before(&log, &CancellationToken::new()).await.unwrap();
        let bytes: usize = log.infos().iter().map(String::len).sum();
        assert!(bytes < 2 * OUTPUT_BYTES_MAX, "{bytes}");
        assert!(log.infos().iter().any(|line| line.ends_with(" MiB more of its output are left out")));
    }

    #[tokio::test]
    async fn a_program_may_be_given_by_its_bare_name() {
        let hook =
            Hook { command: vec!["echo".to_owned(), "found".to_owned()], timeout: Duration::from_secs(120) };
        let log = MemoryLog::default();
        let hooks = hooks(&[("say", hook)], Some("say"), None).unwrap();
        hooks.before(&log, &CancellationToken::new()).await.unwrap();
        assert!(log.infos().contains(&"hook say: found".to_owned()));
    }

    #[test]
    fn a_name_that_the_configuration_lacks_is_found_before_anything_is_done() {
        let failure = hooks(&[], None, Some("start")).unwrap_err();
        assert_eq!(failure.to_string(), "[HF-5003] the agent's configuration has no hook start");
    }
}
