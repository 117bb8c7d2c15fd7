//! `holdfast init`

use std::fs;
use std::io::Write as _;

use holdfast_model::{ErrorCode, fleet};

use crate::app::App;
use crate::args::fleet::InitArgs;
use crate::error::{CliError, CliResult};
use crate::exit_status::ExitStatus;
use crate::output::text::shell_word;

/// The examples, as they are shipped in `deploy/fleet`.
const EXAMPLES: [(&str, &str); 4] = [
    ("repositories.yaml", include_str!("../../../deploy/fleet/repositories.yaml")),
    ("policies.yaml", include_str!("../../../deploy/fleet/policies.yaml")),
    ("sources.yaml", include_str!("../../../deploy/fleet/sources.yaml")),
    ("agents.yaml", include_str!("../../../deploy/fleet/agents.yaml")),
];

/// The schema beside them, which each names in its first line.
const SCHEMA: &str = "fleet.schema.json";

pub(super) fn init(app: &mut App, args: &InitArgs) -> CliResult {
    let folder = &args.folder;
    let failed = |what: &std::path::Path, error: &std::io::Error| {
        CliError::new(ErrorCode::OutputFailed, format!("{} cannot be written", what.display()))
            .because(error.to_string())
    };
    fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    let mut files: Vec<(&str, String)> = EXAMPLES
        .iter()
        .map(|(name, text)| (*name, format!("# yaml-language-server: $schema={SCHEMA}\n{text}")))
        .collect();
    files.push((SCHEMA, format!("{:#}\n", fleet::json_schema())));
    if let Some((name, _)) = files.iter().find(|(name, _)| folder.join(name).exists()) {
        return Err(CliError::new(
            ErrorCode::AlreadyExists,
            format!("{} is there already", folder.join(name).display()),
        )
        .at_stake("nothing was written")
        .then("holdfast init OTHER-DIR"));
    }
    for (name, text) in &files {
        let path = folder.join(name);
        let made = fs::File::create_new(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        made.map_err(|error| failed(&path, &error))?;
        app.output.note(&format!("wrote {}", path.display()));
    }
    let folder = shell_word(&folder.display().to_string());
    app.output.next(&[
        format!("holdfast validate -f {folder} --offline"),
        format!("holdfast apply -f {folder} --dry-run"),
    ]);
    Ok(ExitStatus::Ok)
}
