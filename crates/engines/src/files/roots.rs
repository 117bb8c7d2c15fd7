//! The configured paths of a file source, merged into one tree.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use holdfast_model::ErrorCode;

use crate::EngineError;

/// The configured paths, each once, and the folders on the way to them.
///
/// A path may lie in another one: it is then a root of its own, with its own anchor for patterns and its own file
/// system, and what is in it is yielded once, where it belongs.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    paths: Vec<PathBuf>,
    top: Arc<Node>,
}

/// A folder on the way to a root, or a root.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    /// Whether it is a root itself.
    pub(crate) is_root: bool,
    /// What is on the way below it, in the order of raw bytes.
    pub(crate) children: BTreeMap<Vec<u8>, Arc<Node>>,
}

impl Roots {
    /// Merges paths. Redundant slashes and `.` are dropped.
    ///
    /// # Errors
    /// `HF-1012` when there is no path, or one is not absolute, has `..` in it, or holds a zero byte.
    pub(crate) fn new(paths: &[PathBuf]) -> Result<Self, EngineError> {
        if paths.is_empty() {
            return Err(EngineError::new(ErrorCode::PathInvalid, "the source has no paths"));
        }
        let mut normal = paths.iter().map(|path| normalise(path)).collect::<Result<Vec<_>, _>>()?;
        normal.sort_by(|a, b| a.components().cmp(b.components()));
        normal.dedup();
        let mut top = Node::default();
        for path in &normal {
            let mut node = &mut top;
            for name in names(path) {
                node = Arc::make_mut(node.children.entry(name.to_vec()).or_default());
            }
            node.is_root = true;
        }
        Ok(Self { paths: normal, top: Arc::new(top) })
    }

    /// The paths, normalised, in the order in which they are walked.
    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The folder `/`.
    pub(crate) fn top(&self) -> &Arc<Node> {
        &self.top
    }
}

/// An absolute path without `.`, `..` and redundant slashes.
///
/// # Errors
/// `HF-1012` when it is not absolute, has `..` in it, or holds a zero byte.
pub(crate) fn normalise(path: &Path) -> Result<PathBuf, EngineError> {
    let refused = |why: &str| {
        EngineError::new(ErrorCode::PathInvalid, format!("the path {:?} {why}", path.display().to_string()))
    };
    if !path.is_absolute() {
        return Err(refused("is not absolute"));
    }
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(refused("holds a zero byte"));
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(refused("has \"..\" in it"));
    }
    Ok(path.components().collect())
}

/// The names that a normalised path consists of.
fn names(path: &Path) -> impl Iterator<Item = &[u8]> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.as_bytes()),
        _ => None,
    })
}

/// The path of a normalised absolute path in the tree of a snapshot: without the leading `/`.
pub(crate) fn tree_path(path: &Path) -> Vec<u8> {
    names(path).collect::<Vec<_>>().join(&b'/')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn roots(paths: &[&str]) -> Result<Roots, EngineError> {
        Roots::new(&paths.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    /// Every node with its path, depth first.
    fn nodes(node: &Node, path: &str, found: &mut Vec<(String, bool)>) {
        for (name, child) in &node.children {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            found.push((path.clone(), child.is_root));
            nodes(child, &path, found);
        }
    }

    #[test]
    fn common_prefixes_merge() {
        let roots = roots(&["/srv/b", "/srv/./a//x/", "/etc", "/srv/b/"]).unwrap();
        assert_eq!(roots.paths(), ["/etc", "/srv/a/x", "/srv/b"].map(PathBuf::from));
        let mut found = Vec::new();
        nodes(roots.top(), "", &mut found);
        let expected =
            [("/etc", true), ("/srv", false), ("/srv/a", false), ("/srv/a/x", true), ("/srv/b", true)];
        assert_eq!(found, expected.map(|(path, is_root)| (path.to_owned(), is_root)));
    }

    #[test]
    fn paths_that_cannot_be_walked_are_refused() {
        for (path, message) in [
            ("srv", "the path \"srv\" is not absolute"),
            ("", "the path \"\" is not absolute"),
            ("~", "the path \"~\" is not absolute"),
            ("/srv/../etc", "the path \"/srv/../etc\" has \"..\" in it"),
            ("/a\0b", "the path \"/a\\0b\" holds a zero byte"),
        ] {
            let error = roots(&[path]).unwrap_err();
            assert_eq!((error.code(), error.to_string()), (ErrorCode::PathInvalid, message.to_owned()));
        }
        let error = roots(&[]).unwrap_err();
        assert_eq!(
            (error.code(), error.to_string()),
            (ErrorCode::PathInvalid, "the source has no paths".into())
        );
    }

    proptest! {
        #[test]
        fn merged_paths_are_the_prefixes_of_the_given_ones_and_nothing_else(
            given in prop::collection::vec(prop::collection::vec("[ab\\-.]{1,2}", 1..5), 1..8)
        ) {
            let usable: Vec<Vec<String>> = given
                .into_iter()
                .map(|names| names.into_iter().filter(|name| name != "." && name != "..").collect::<Vec<_>>())
                .filter(|names| !names.is_empty())
                .collect();
            prop_assume!(!usable.is_empty());
            let paths: Vec<PathBuf> = usable.iter().map(|names| format!("/{}", names.join("/")).into()).collect();
            let roots = Roots::new(&paths).unwrap();
            let mut found = Vec::new();
            nodes(roots.top(), "", &mut found);

            let expected: BTreeSet<String> = usable
                .iter()
                .flat_map(|names| (1..=names.len()).map(|count| format!("/{}", names[..count].join("/"))))
                .collect();
            let all: BTreeSet<String> = found.iter().map(|(path, _)| path.clone()).collect();
            prop_assert_eq!(all.len(), found.len(), "each node comes once");
            prop_assert_eq!(&all, &expected);
            let marked: BTreeSet<PathBuf> =
                found.iter().filter(|(_, is_root)| *is_root).map(|(path, _)| path.into()).collect();
            prop_assert_eq!(&marked, &paths.iter().cloned().collect());
            prop_assert_eq!(roots.paths().len(), marked.len());
            // Depth first with siblings in the order of raw bytes is the order of the components.
            let in_order = found.windows(2).all(|pair| {
                Path::new(&pair[0].0).components().lt(Path::new(&pair[1].0).components())
            });
            prop_assert!(in_order);
        }
    }
}
