//! Keeps secrets out of what is stored and shown: answers of providers repeat what they were sent.

use holdfast_model::secret::Secret;

/// Parts shorter than this are words, not secrets.
const PART_BYTES_MIN: usize = 8;

/// Texts that must not be shown.
#[derive(Default)]
pub(super) struct Scrub(Vec<Secret>);

impl Scrub {
    /// Adds a secret.
    pub(super) fn add(&mut self, secret: &Secret) {
        self.0.push(secret.clone());
    }

    /// Adds an address that is a secret, and the parts of it that are.
    pub(super) fn add_url(&mut self, url: &Secret) {
        self.add(url);
        let rest = url.reveal().split_once("://").map_or("", |(_, rest)| rest);
        let path = rest.split_once('/').map_or("", |(_, path)| path);
        self.0.push(Secret::new(path));
        let parts = path.split(['/', '?', '&', '#']).map(|part| part.rsplit('=').next().unwrap_or(part));
        self.0.extend(parts.map(Secret::new));
    }

    /// The text without them.
    pub(super) fn clean(&self, text: &str) -> String {
        let mut secrets: Vec<&str> =
            self.0.iter().map(Secret::reveal).filter(|secret| secret.len() >= PART_BYTES_MIN).collect();
        // The longest first: a part of a secret must not leave the rest of it behind.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_secret_address_is_left() {
        let mut scrub = Scrub::default();
        scrub.add_url(&Secret::new("https://hooks.example.com/services/T0000001/B0000002/canary-in-path"));
        scrub.add_url(&Secret::new("https://oapi.example.com/robot/send?access_token=canary-in-query"));
        scrub.add(&Secret::new("SECcanary"));
        let cleaned = scrub
            .clean("bad token canary-in-query, path /services/T0000001/B0000002/canary-in-path, SECcanary");
        assert_eq!(cleaned, "bad token ***, path /***, ***");
    }
}
