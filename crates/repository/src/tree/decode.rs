//! Reading a tree. It may come from any client, or from somebody who means harm.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{FileTime, Node, NodeMetadata, NodeType, from_go_mode, name_is_safe, quote};
use crate::error::RepositoryError;
use crate::format::TREE_BLOB_BYTES_MAX;
use crate::id::BlobId;

/// One folder, its entries in the order of their raw names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tree {
    /// The entries.
    pub nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct TreeJson<'a> {
    #[serde(borrow, default)]
    nodes: Option<Vec<NodeJson<'a>>>,
}

#[derive(Deserialize)]
struct NodeJson<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    node_type: Cow<'a, str>,
    #[serde(default)]
    mode: u32,
    #[serde(default, borrow)]
    mtime: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    atime: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    ctime: Option<Cow<'a, str>>,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default, borrow)]
    user: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    group: Option<Cow<'a, str>>,
    #[serde(default)]
    inode: u64,
    #[serde(default)]
    device_id: u64,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    links: u64,
    #[serde(default, borrow)]
    linktarget: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    linktarget_raw: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    extended_attributes: Option<Vec<XattrJson<'a>>>,
    #[serde(default)]
    generic_attributes: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default)]
    device: u64,
    #[serde(default)]
    content: Option<Vec<BlobId>>,
    #[serde(default)]
    subtree: Option<BlobId>,
    #[serde(default, borrow)]
    error: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct XattrJson<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default, borrow)]
    value: Option<Cow<'a, str>>,
}

impl Tree {
    /// Reads the text of a tree. Entries come out sorted, whatever order they had.
    ///
    /// # Errors
    /// `HF-3006` when it is no tree or names an entry twice, `HF-3017` for a name that is no file name, `HF-3018` when
    /// it is too large.
    pub fn parse(id: &BlobId, json: &[u8]) -> Result<Self, RepositoryError> {
        let damaged = |reason: String| RepositoryError::damaged(format!("tree {id}"), reason);
        if json.len() > TREE_BLOB_BYTES_MAX {
            return Err(RepositoryError::LimitExceeded {
                object: format!("tree {id}"),
                what: "bytes",
                actual: json.len() as u64,
                limit: TREE_BLOB_BYTES_MAX as u64,
            });
        }
        // The JSON library would also take a list for the fields in their order.
        if json.first() != Some(&b'{') {
            return Err(damaged("it is no tree".to_owned()));
        }
        let tree: TreeJson<'_> =
            serde_json::from_slice(json).map_err(|error| damaged(format!("it is no tree: {error}")))?;
        let mut names = NameCache::default();
        let mut nodes = Vec::with_capacity(tree.nodes.as_ref().map_or(0, Vec::len));
        for node in tree.nodes.unwrap_or_default() {
            nodes.push(convert(id, node, &mut names)?);
        }
        if !nodes.is_sorted_by(|a: &Node, b: &Node| a.name < b.name) {
            nodes.sort_by(|a, b| a.name.cmp(&b.name));
            if let Some(pair) = nodes.windows(2).find(|pair| pair[0].name == pair[1].name) {
                return Err(damaged(format!("it names {:?} twice", String::from_utf8_lossy(&pair[0].name))));
            }
        }
        Ok(Self { nodes })
    }

    /// The entry of this name.
    pub fn find(&self, name: &[u8]) -> Option<&Node> {
        let found = self.nodes.binary_search_by(|node| node.name.as_slice().cmp(name)).ok()?;
        Some(&self.nodes[found])
    }
}

/// Most entries of a folder have the owner of the one before them: one allocation serves all.
#[derive(Default)]
struct NameCache {
    user: Option<Arc<str>>,
    group: Option<Arc<str>>,
}

fn shared(last: &mut Option<Arc<str>>, name: Option<Cow<'_, str>>) -> Option<Arc<str>> {
    let name = name.filter(|name| !name.is_empty())?;
    if last.as_deref() != Some(&*name) {
        *last = Some(Arc::from(&*name));
    }
    last.clone()
}

fn convert(id: &BlobId, json: NodeJson<'_>, names: &mut NameCache) -> Result<Node, RepositoryError> {
    let damaged = |reason: String| RepositoryError::damaged(format!("tree {id}"), reason);
    let unsafe_name = || RepositoryError::UnsafeName { tree: id.to_string(), name: json.name.to_string() };
    let name = quote::unquote(&json.name)
        .ok_or_else(|| damaged(format!("the name {:?} is not properly quoted", json.name)))?;
    if !name_is_safe(&name) {
        return Err(unsafe_name());
    }
    let node_type = NodeType::parse(&json.node_type)
        .ok_or_else(|| damaged(format!("entry {:?} has the unknown type {:?}", json.name, json.node_type)))?;
    let time = |text: &Option<Cow<'_, str>>| match text {
        None => Ok(FileTime::default()),
        Some(text) => FileTime::parse(text)
            .ok_or_else(|| damaged(format!("entry {:?} has {text:?} for a time", json.name))),
    };
    let base64 = |text: &str| {
        STANDARD
            .decode(text)
            .map_err(|_| damaged(format!("entry {:?} has an attribute that is not base64", json.name)))
    };
    let link_target = match (&json.linktarget_raw, &json.linktarget) {
        (Some(raw), _) => Some(base64(raw)?),
        (None, Some(target)) => Some(target.as_bytes().to_vec()),
        (None, None) => None,
    };
    let mut xattrs = Vec::new();
    for xattr in json.extended_attributes.iter().flatten() {
        xattrs.push((xattr.name.as_bytes().to_vec(), base64(xattr.value.as_deref().unwrap_or_default())?));
    }
    if node_type == NodeType::Directory && json.subtree.is_none() && json.error.is_none() {
        return Err(damaged(format!("folder {:?} has no tree", json.name)));
    }
    Ok(Node {
        metadata: NodeMetadata {
            node_type,
            mode: from_go_mode(json.mode),
            mtime: time(&json.mtime)?,
            atime: time(&json.atime)?,
            ctime: time(&json.ctime)?,
            uid: json.uid,
            gid: json.gid,
            user: shared(&mut names.user, json.user),
            group: shared(&mut names.group, json.group),
            inode: json.inode,
            device_id: json.device_id,
            size: json.size,
            links: json.links,
            link_target,
            xattrs,
            device: json.device,
        },
        content: json.content.unwrap_or_default(),
        subtree: json.subtree,
        error: json.error.filter(|error| !error.is_empty()).map(Cow::into_owned),
        generic_attributes: json.generic_attributes,
        name: name.into_owned(),
    })
}
