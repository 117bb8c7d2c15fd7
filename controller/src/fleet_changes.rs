//! What files change in the fleet: who may change what, what has to be confirmed, and the change itself, all or nothing.
//!
//! A definition may have an **owner**, such as `git:main` or the folder that the controller watches: whoever applied it
//! under that name. Others do not change or remove it unless they take it over, and pruning removes only what is absent
//! from the files of its own owner.

use std::sync::Arc;

use holdfast_model::fleet::{self, Change, ChangeAction, Fleet, FleetError, FleetFile, read_fleet};
use holdfast_model::{ErrorCode, Failure};

use crate::core::Core;
use crate::definitions::Declared;
use crate::records::Batch;

/// Files of one request.
pub const FILES_MAX: usize = 1000;

/// The longest name of an owner, in bytes.
const OWNER_BYTES_MAX: usize = 200;

/// On whose behalf files are applied, and how far that goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Authorship {
    /// Who manages what is applied; nobody: it is changed by hand.
    pub owner: Option<String>,
    /// What the owner manages and the files lack is removed.
    pub prune: bool,
    /// What others manage is taken over.
    pub take_over: bool,
}

/// What was confirmed of the dangerous changes.
#[derive(Debug, Clone, Default)]
pub struct Confirmed {
    /// Their paths.
    pub paths: Vec<String>,
    /// Why.
    pub reason: String,
}

impl Authorship {
    /// As it is asked for.
    ///
    /// # Errors
    /// When the name of the owner is too long or has characters that are not printed.
    pub fn new(owner: &str, prune: bool, take_over: bool) -> Result<Self, Failure> {
        if owner.len() > OWNER_BYTES_MAX || owner.chars().any(char::is_control) {
            let message = format!("an owner is a name of at most {OWNER_BYTES_MAX} printed characters");
            return Err(Failure::new(ErrorCode::UsageInvalid, message));
        }
        let owner = Some(owner.to_owned()).filter(|owner| !owner.is_empty());
        Ok(Self { owner, prune, take_over })
    }

    /// Whether what this owner manages is its own.
    fn owns(&self, owner: Option<&String>) -> bool {
        self.owner.as_ref() == owner
    }
}

/// What files would change, and what stands against it.
#[derive(Debug, Default)]
pub struct FleetPlan {
    /// What the files declare.
    pub wanted: Fleet,
    /// In order.
    pub changes: Vec<Change>,
    /// Paths that others manage, with their owners.
    pub foreign: Vec<(String, String)>,
}

/// Reads files and compares them with what is declared.
///
/// # Errors
/// Everything that is wrong with them, each with its place.
pub fn plan(
    declared: &Declared,
    files: &[FleetFile],
    authorship: &Authorship,
) -> Result<FleetPlan, Vec<FleetError>> {
    if files.len() > FILES_MAX {
        return Err(vec![FleetError {
            code: ErrorCode::FileInvalid,
            file: "request".to_owned(),
            position: None,
            message: format!("{} files are too many, the limit is {FILES_MAX}", files.len()),
        }]);
    }
    let wanted = read_fleet(files)?;
    let mut changes = fleet::diff(&declared.fleet, &wanted, true);
    changes.retain(|change| {
        let owner = declared.owner_of(&change.path);
        change.action != ChangeAction::Remove || authorship.prune && authorship.owns(owner)
    });
    let mut known = declared.fleet.clone();
    for change in changes.iter().filter(|change| change.action == ChangeAction::Remove) {
        let (kind, name) = change.path.split_once('.').unwrap_or((&change.path, ""));
        known.remove(kind, name);
    }
    let mut errors = wanted.check_references(&known);
    errors.extend(crate::notify::check_templates(&wanted));
    fleet::locate(&mut errors, files);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut foreign = Vec::new();
    for named in fleet::diff(&Fleet::default(), &wanted, false) {
        if !declared.stamps.contains_key(&named.path) {
            continue;
        }
        let owner = declared.owner_of(&named.path);
        if authorship.owns(owner) {
            continue;
        }
        match owner {
            Some(other) if !authorship.take_over => foreign.push((named.path, other.clone())),
            _ => {
                let manager = |owner: Option<&String>| owner.map_or("nobody", String::as_str).to_owned();
                let detail =
                    format!("managed by: {} → {}", manager(owner), manager(authorship.owner.as_ref()));
                match changes.iter_mut().find(|change| change.path == named.path) {
                    Some(change) => change.details.push(detail),
                    None => changes.push(Change {
                        path: named.path,
                        action: ChangeAction::Update,
                        details: vec![detail],
                        dangerous: false,
                    }),
                }
            }
        }
    }
    Ok(FleetPlan { wanted, changes, foreign })
}

/// Carries a plan out, when nothing stands against it. `remember` adds to the commit what else belongs to it.
///
/// # Errors
/// `HF-4033` when others manage what would change, `HF-1009` when a dangerous change is not confirmed, `HF-4014` when
/// something would be removed that is still referred to, `HF-4003` when a definition changed meanwhile.
pub async fn apply(
    core: &Arc<Core>,
    by: &str,
    plan: &FleetPlan,
    authorship: &Authorship,
    confirmed: &Confirmed,
    remember: impl FnOnce(Batch, Vec<String>) -> Batch,
) -> Result<(), Failure> {
    if let Some((path, owner)) = plan.foreign.first() {
        return Err(managed_elsewhere(path, owner));
    }
    let unconfirmed: Vec<&Change> = plan
        .changes
        .iter()
        .filter(|change| change.dangerous && !confirmed.paths.contains(&change.path))
        .collect();
    if let Some(first) = unconfirmed.first() {
        let mut failure = Failure::new(
            ErrorCode::NeedsConfirmation,
            format!("{} changes lose protection and were not confirmed", unconfirmed.len()),
        );
        failure.why = unconfirmed.iter().map(|change| change.path.clone()).collect();
        return Err(failure.then(format!("add: --confirm {} --reason TEXT", first.path)));
    }
    if plan.changes.iter().any(|change| change.dangerous) && confirmed.reason.trim().is_empty() {
        return Err(Failure::new(
            ErrorCode::NeedsConfirmation,
            "a change that loses protection needs a reason",
        )
        .then("add: --reason TEXT"));
    }
    let current = core.definitions.current();
    refuse_removal_in_use(&current.fleet, &plan.wanted, &plan.changes)?;
    let paths: Vec<String> = plan.changes.iter().map(|change| change.path.clone()).collect();
    let mut target = paths.join(" ");
    if !confirmed.reason.is_empty() {
        target = format!("{target}: {}", confirmed.reason);
    }
    let batch = Batch::new(by, "fleet.apply", target.chars().take(2000).collect::<String>());
    let (batch, owner) = (remember(batch, paths), authorship.owner.as_deref());
    let now = core.clock.now();
    core.definitions.apply(&plan.wanted, &plan.changes, batch, by, owner, now).await
}

/// That another manages a definition.
pub fn managed_elsewhere(path: &str, owner: &str) -> Failure {
    Failure::new(ErrorCode::ManagedElsewhere, format!("{path} is managed by {owner}"))
        .because("a change here would be undone there")
        .then(format!("change it where {owner} has it"))
        .then("add: --take-over    # from then on it is managed here")
}

/// What others still refer to can not be removed.
///
/// # Errors
/// `HF-4014` names one that does.
pub fn refuse_removal_in_use(current: &Fleet, wanted: &Fleet, changes: &[Change]) -> Result<(), Failure> {
    let mut after = current.clone();
    for change in changes {
        let (kind, name) = change.path.split_once('.').unwrap_or((&change.path, ""));
        match (change.action, wanted.get_json(kind, name)) {
            (ChangeAction::Create | ChangeAction::Update, Some(spec)) => {
                after.insert_json(kind, name, spec).map_err(|why| Failure::new(ErrorCode::Internal, why))?;
            }
            _ => after.remove(kind, name),
        }
    }
    let removed = changes.iter().filter(|change| change.action == ChangeAction::Remove);
    match removed.filter_map(|change| after.user_of(&change.path)).next() {
        Some(message) => Err(Failure::new(ErrorCode::InUse, message)),
        None => Ok(()),
    }
}

/// Problems of files as one failure.
pub fn all_in_one(errors: &[FleetError]) -> Failure {
    let Some(first) = errors.first() else {
        return Failure::new(ErrorCode::FileInvalid, "the files are not valid");
    };
    let mut failure = Failure::from(first);
    failure.why = errors.iter().skip(1).map(ToString::to_string).collect();
    failure.then("holdfast validate -f DIR")
}
