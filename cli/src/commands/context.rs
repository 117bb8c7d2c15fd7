//! `holdfast context …`

use std::io::Read as _;
use std::path::{Path, PathBuf};

use holdfast_model::ErrorCode;
use holdfast_model::ids::AgentName;
use holdfast_model::secret::Secret;

use crate::app::App;
use crate::args::access::{ContextAddArgs, ContextCommand, ContextShowArgs};
use crate::client::Address;
use crate::contexts::{self, Context, Contexts, TokenPlace};
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::text::plain;
use crate::views::local::ContextView;

pub(super) fn context(app: &mut App, command: ContextCommand) -> CliResult {
    match command {
        ContextCommand::List => list(app),
        ContextCommand::Use(args) => make_current(app, args.name),
        ContextCommand::Add(args) => add(app, &args),
        ContextCommand::Remove(args) => remove(app, &args.name),
        ContextCommand::Show(args) => show(app, args),
    }
}

fn view(name: &str, context: &Context, current: Option<&str>) -> ContextView {
    ContextView {
        name: name.to_owned(),
        current: current == Some(name),
        server: context.server.clone(),
        ca_file: context.ca_file.display().to_string(),
        token_file: context.token_file.as_ref().map(|path| path.display().to_string()),
    }
}

fn list(app: &mut App) -> CliResult {
    let contexts = app.contexts()?;
    let current = contexts.current.as_deref();
    let views: Vec<ContextView> =
        contexts.contexts.iter().map(|(name, context)| view(name, context, current)).collect();
    app.output.list(
        &views,
        "no controller is known\n  next   holdfast context add NAME --server https://HOST:7443 --ca-file FILE --token-file FILE",
    )?;
    Ok(ExitStatus::Ok)
}

fn make_current(app: &mut App, name: String) -> CliResult {
    let path = contexts::file_path(&app.surroundings)?;
    let mut all = contexts::load(&path)?;
    if !all.contexts.contains_key(&name) {
        return Err(contexts::unknown(&name, &all));
    }
    app.output.note(&format!("commands go to {name} now"));
    all.current = Some(name);
    contexts::save(&path, &all)?;
    Ok(ExitStatus::Ok)
}

fn show(app: &mut App, args: ContextShowArgs) -> CliResult {
    if let Some(name) = args.name {
        let all = app.contexts()?;
        let context = all.contexts.get(&name).ok_or_else(|| contexts::unknown(&name, &all))?;
        let view = view(&name, context, all.current.as_deref());
        app.output.list(&[view], "")?;
        return Ok(ExitStatus::Ok);
    }
    let connection = app.connection()?;
    let token_file = match &connection.token {
        TokenPlace::File(path) => Some(path.display().to_string()),
        TokenPlace::Variable(_) => Some(format!("${}", contexts::TOKEN_VARIABLE)),
        TokenPlace::Nowhere => None,
    };
    let view = ContextView {
        name: connection.context.clone().unwrap_or_else(|| "(flags)".to_owned()),
        current: true,
        server: connection.server,
        ca_file: connection.ca_file.display().to_string(),
        token_file,
    };
    app.output.list(&[view], "")?;
    Ok(ExitStatus::Ok)
}

fn remove(app: &mut App, name: &str) -> CliResult {
    let path = contexts::file_path(&app.surroundings)?;
    let mut all = contexts::load(&path)?;
    let Some(context) = all.contexts.remove(name) else {
        return Err(contexts::unknown(name, &all));
    };
    if all.current.as_deref() == Some(name) {
        all.current = None;
    }
    contexts::save(&path, &all)?;
    // A token that we wrote belongs to the context; one that was only named belongs to somebody else.
    let own = own_token_file(&path, name);
    if context.token_file.as_deref() == Some(own.as_path()) {
        holdfast_runtime::durable_file::remove(&own)
            .map_err(|error| CliError::file("removing", &own, &error))?;
    }
    app.output.note(&format!("context {} is forgotten", plain(name)));
    Ok(ExitStatus::Ok)
}

fn own_token_file(contexts_file: &Path, name: &str) -> PathBuf {
    contexts_file.with_file_name("tokens").join(name)
}

fn add(app: &mut App, args: &ContextAddArgs) -> CliResult {
    // The same rules as all names: safe in a path, a shell and a file.
    if let Err(error) = AgentName::new(args.name.clone()) {
        return Err(CliError::new(
            ErrorCode::NameInvalid,
            format!("context name {:?} is not valid: {}", args.name, error.reason),
        ));
    }
    let choice = &app.settings.connection;
    let missing = |flag: &str| {
        CliError::usage(format!("a context needs {flag}"))
            .then("holdfast context add NAME --server https://HOST:7443 --ca-file FILE --token-file FILE")
    };
    let server: Address = choice.server.as_deref().ok_or_else(|| missing("--server"))?.parse()?;
    let ca_file = absolute(choice.ca_file.as_deref().ok_or_else(|| missing("--ca-file"))?)?;
    let path = contexts::file_path(&app.surroundings)?;
    let mut all: Contexts = contexts::load(&path)?;
    if all.contexts.contains_key(&args.name) && !args.replace {
        return Err(CliError::new(
            ErrorCode::AlreadyExists,
            format!("there is a context {:?} already", args.name),
        )
        .then(format!("{} --replace", app.settings.consent.command)));
    }
    let token_file = match &choice.token_file {
        Some(given) => absolute(given)?,
        None => {
            let token = new_token(app, args.token_stdin)?;
            let own = own_token_file(&path, &args.name);
            contexts::write_private(&own, token.reveal().as_bytes())?;
            own
        }
    };
    // Said now rather than at the first use.
    TokenPlace::File(token_file.clone()).read()?;
    let context = Context { server: server.to_string(), ca_file, token_file: Some(token_file) };
    all.contexts.insert(args.name.clone(), context);
    if args.make_current || all.current.is_none() {
        all.current = Some(args.name.clone());
    }
    contexts::save(&path, &all)?;
    app.output.note(&format!("context {} is known, written to {}", args.name, path.display()));
    app.output.next(&[format!("holdfast --context {} whoami", args.name)]);
    Ok(ExitStatus::Ok)
}

fn absolute(path: &Path) -> CliResult<PathBuf> {
    path.canonicalize().map_err(|error| CliError::file("opening", path, &error))
}

/// A token that is typed without being shown, or comes through a pipe. Never from an argument.
fn new_token(app: &App, from_stdin: bool) -> CliResult<Secret> {
    let failed = |error: &dyn std::fmt::Display| {
        CliError::new(ErrorCode::SecretUnresolvable, "the token could not be read").because(error.to_string())
    };
    if from_stdin {
        let mut text = String::new();
        std::io::stdin().take(4096).read_to_string(&mut text).map_err(|error| failed(&error))?;
        return Ok(Secret::new(text.trim_end_matches(['\n', '\r'])));
    }
    if !app.settings.consent.interactive {
        return Err(CliError::usage("a context needs a token")
            .because("--token-file FILE names one, --token-stdin reads one"));
    }
    let typed = dialoguer::Password::new().with_prompt("Token").interact().map_err(|error| failed(&error))?;
    Ok(Secret::new(typed.trim()))
}
