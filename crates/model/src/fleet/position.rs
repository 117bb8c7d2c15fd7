//! Where in the files a definition is. Looked for only when something is wrong with it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::{FleetDocument, FleetError, FleetFile, read_yaml};

/// A document as far as places are concerned: maps and where their values begin.
struct Place {
    at: (u64, u64),
    keys: BTreeMap<String, Place>,
}

struct Keys(BTreeMap<String, Place>);

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Keys>::deserialize(deserializer)?;
        let at = (spanned.referenced.line(), spanned.referenced.column());
        Ok(Place { at, keys: spanned.value.0 })
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = BTreeMap::new();
                while let Some((key, place)) = map.next_entry()? {
                    keys.insert(key, place);
                }
                Ok(Keys(keys))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Keys, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Keys(BTreeMap::new()))
            }

            fn visit_str<E>(self, _: &str) -> Result<Keys, E> {
                Ok(Keys(BTreeMap::new()))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Keys, E> {
                Ok(Keys(BTreeMap::new()))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Keys, E> {
                Ok(Keys(BTreeMap::new()))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Keys, E> {
                Ok(Keys(BTreeMap::new()))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Keys, E> {
                Ok(Keys(BTreeMap::new()))
            }

            fn visit_unit<E>(self) -> Result<Keys, E> {
                Ok(Keys(BTreeMap::new()))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// Gives errors of definitions the file, line and column of what they are about, where one of the files has it. The
/// path of the definition goes into the message.
pub fn locate(errors: &mut [FleetError], files: &[FleetFile]) {
    if errors.is_empty() {
        return;
    }
    let places: Vec<(&str, Place)> = files
        .iter()
        // What does not read as a document may be nested without end.
        .filter(|file| read_yaml::<FleetDocument>(&file.name, &file.text).is_ok())
        .filter_map(|file| Some((file.name.as_str(), serde_saphyr::from_str(&file.text).ok()?)))
        .collect();
    for error in errors.iter_mut().filter(|error| error.position.is_none()) {
        let found = places.iter().find_map(|(name, place)| Some((*name, find(place, &error.file)?)));
        if let Some((name, position)) = found {
            error.message = format!("{}: {}", error.file, error.message);
            error.file = name.to_owned();
            error.position = Some(position);
        }
    }
}

/// Where a definition is, or the part of it that the path names and that is written there. Names of definitions may
/// have dots in them; keys never do.
fn find(root: &Place, path: &str) -> Option<(u64, u64)> {
    let (kind, rest) = path.split_once('.')?;
    let definitions = match kind {
        "channels" => root.keys.get("notifications")?.keys.get(kind)?,
        _ => root.keys.get(kind)?,
    };
    let fits = |name: &str| rest == name || rest.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
    let (name, definition) =
        definitions.keys.iter().filter(|(name, _)| fits(name)).max_by_key(|(name, _)| name.len())?;
    let mut place = definition;
    for key in rest[name.len()..].split('.').skip(1) {
        match place.keys.get(key) {
            Some(inner) => place = inner,
            None => break,
        }
    }
    Some(place.at)
}
