//! Asking before something dangerous. The controller enforces the rules; this is only how people answer.

use std::io::{BufRead, Write};

use holdfast_model::ErrorCode;

use crate::error::{CliError, CliResult};
use crate::output::text::{plain, shell_word};
use crate::settings::Consent;

/// A name that was confirmed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Confirmation {
    /// The name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Where questions are asked.
pub(crate) trait Dialogue {
    /// Asks, and returns the line that was typed; nothing at the end of the input.
    ///
    /// # Errors
    /// Those of the terminal.
    fn ask(&mut self, question: &str) -> std::io::Result<Option<String>>;
}

/// Standard error and standard input.
#[derive(Debug, Default)]
pub(crate) struct Terminal;

impl Dialogue for Terminal {
    fn ask(&mut self, question: &str) -> std::io::Result<Option<String>> {
        let mut err = std::io::stderr().lock();
        write!(err, "{question} ")?;
        err.flush()?;
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line)?;
        Ok((read > 0).then(|| line.trim().to_owned()))
    }
}

/// Asks `[y/N]` for what can be redone but costs something.
///
/// # Errors
/// `HF-1009` when the answer is no, or nobody can be asked.
pub(crate) fn yes(consent: &Consent, dialogue: &mut dyn Dialogue, question: &str) -> CliResult<()> {
    if consent.yes {
        return Ok(());
    }
    if !consent.interactive {
        return Err(refused(question).then(format!("{} --yes", consent.command)));
    }
    match answer(dialogue, &format!("{question} [y/N]"))? {
        Some(text) if matches!(text.to_lowercase().as_str(), "y" | "yes") => Ok(()),
        _ => Err(refused("not confirmed, nothing was done")),
    }
}

/// Asks to type a name for what loses data or protection.
///
/// # Errors
/// `HF-1009` when another name is typed or given, no reason is given, or nobody can be asked.
pub(crate) fn typed_name(
    consent: &Consent,
    dialogue: &mut dyn Dialogue,
    what: &str,
    name: &str,
) -> CliResult<Confirmation> {
    let flags = || format!("{} --confirm {} --reason TEXT", consent.command, shell_word(name));
    let confirmed = if consent.confirm.iter().any(|given| given == name) {
        true
    } else if !consent.confirm.is_empty() {
        let given = consent.confirm.join(", ");
        return Err(refused(what)
            .because(format!("--confirm names {given}, what is asked for is {name}"))
            .then(flags()));
    } else if consent.interactive {
        let typed = answer(dialogue, &format!("{what}\nType {} to confirm:", plain(name)))?;
        typed.as_deref() == Some(name)
    } else {
        return Err(refused(what).then(flags()));
    };
    if !confirmed {
        return Err(refused("another name was typed, nothing was done"));
    }
    Ok(Confirmation {
        name: name.to_owned(),
        reason: reason(consent, dialogue)?
            .ok_or_else(|| refused(what).because("a reason is needed").then(flags()))?,
    })
}

/// The reason, which is needed.
///
/// # Errors
/// `HF-1001` when there is none.
pub(crate) fn needed_reason(consent: &Consent, dialogue: &mut dyn Dialogue, what: &str) -> CliResult<String> {
    reason(consent, dialogue)?.ok_or_else(|| {
        CliError::usage(format!("{what} needs a reason")).then(format!("{} --reason TEXT", consent.command))
    })
}

/// The reason that was given, or typed when a person can be asked.
///
/// # Errors
/// Those of the terminal.
pub(crate) fn reason(consent: &Consent, dialogue: &mut dyn Dialogue) -> CliResult<Option<String>> {
    if consent.reason.is_some() || !consent.interactive {
        return Ok(consent.reason.clone());
    }
    Ok(answer(dialogue, "Why (goes to the audit log):")?.filter(|text| !text.is_empty()))
}

fn answer(dialogue: &mut dyn Dialogue, question: &str) -> CliResult<Option<String>> {
    dialogue
        .ask(question)
        .map_err(|error| refused("the terminal could not be used").because(error.to_string()))
}

fn refused(message: &str) -> CliError {
    CliError::new(ErrorCode::NeedsConfirmation, message.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Script(Vec<&'static str>);

    impl Dialogue for Script {
        fn ask(&mut self, _question: &str) -> std::io::Result<Option<String>> {
            Ok((!self.0.is_empty()).then(|| self.0.remove(0).to_owned()))
        }
    }

    fn person() -> Consent {
        Consent { interactive: true, ..Consent::default() }
    }

    #[test]
    fn a_person_says_yes() {
        assert!(yes(&person(), &mut Script(vec!["Y"]), "Revoke db1?").is_ok());
        for no in ["", "n", "yep"] {
            let error = yes(&person(), &mut Script(vec![no]), "Revoke db1?").unwrap_err();
            assert_eq!(error.exit_status().number(), 9);
        }
        assert!(yes(&person(), &mut Script(Vec::new()), "Revoke db1?").is_err());
    }

    #[test]
    fn a_pipeline_is_told_the_flag() {
        let consent = Consent { command: "holdfast agent revoke db1".to_owned(), ..Consent::default() };
        let error = yes(&consent, &mut Script(Vec::new()), "Revoke db1?").unwrap_err();
        assert_eq!(error.failure().next, ["holdfast agent revoke db1 --yes"]);
        let consent = Consent { command: "holdfast restore promote 12".to_owned(), ..Consent::default() };
        let error = typed_name(&consent, &mut Script(Vec::new()), "Replaces shop.db", "shop").unwrap_err();
        assert_eq!(error.failure().next, ["holdfast restore promote 12 --confirm shop --reason TEXT"]);
    }

    #[test]
    fn yes_is_not_enough_where_a_name_is_asked_for() {
        let consent = Consent { yes: true, ..Consent::default() };
        assert!(typed_name(&consent, &mut Script(Vec::new()), "Replaces shop.db", "shop").is_err());
    }

    #[test]
    fn the_name_must_be_the_right_one() {
        let wrong =
            Consent { confirm: vec!["sho".to_owned()], reason: Some("x".to_owned()), ..Consent::default() };
        assert!(typed_name(&wrong, &mut Script(Vec::new()), "Replaces shop.db", "shop").is_err());
        assert!(typed_name(&person(), &mut Script(vec!["sho", "why"]), "Replaces shop.db", "shop").is_err());
        let typed =
            typed_name(&person(), &mut Script(vec!["shop", "orders are gone"]), "Replaces shop.db", "shop");
        assert_eq!(
            typed.unwrap(),
            Confirmation { name: "shop".to_owned(), reason: "orders are gone".to_owned() }
        );
    }

    #[test]
    fn a_reason_is_needed() {
        let consent = Consent { confirm: vec!["shop".to_owned()], ..Consent::default() };
        let error = typed_name(&consent, &mut Script(Vec::new()), "Replaces shop.db", "shop").unwrap_err();
        assert_eq!(error.failure().why, ["a reason is needed"]);
    }
}
