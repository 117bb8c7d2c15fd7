//! Writing a tree: the same text for the same entries, always, and the same as restic's where it has no choice.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Node, NodeMetadata, NodeType, quote, to_go_mode};
use crate::id::BlobId;

/// Builds the JSON text of one folder, entry after entry in the order of their raw names.
///
/// Entries become text as soon as they are added: an open folder costs memory for its text and no more.
#[derive(Debug)]
pub struct TreeEncoder {
    json: Vec<u8>,
    scratch: String,
    entries: usize,
}

impl Default for TreeEncoder {
    fn default() -> Self {
        Self::new()
    }
}

impl TreeEncoder {
    /// An empty folder.
    pub fn new() -> Self {
        Self { json: b"{\"nodes\":[".to_vec(), scratch: String::new(), entries: 0 }
    }

    /// How many entries were added.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Adds a regular file with its blobs. `size` is the sum of their lengths.
    pub fn push_file(&mut self, name: &[u8], metadata: &NodeMetadata, size: u64, content: &[BlobId]) {
        self.push(name, metadata, size, Some(content), None);
    }

    /// Adds a folder.
    pub fn push_folder(&mut self, name: &[u8], metadata: &NodeMetadata, subtree: BlobId) {
        self.push(name, metadata, 0, None, Some(subtree));
    }

    /// Adds anything without content: links, devices, pipes, sockets.
    pub fn push_other(&mut self, name: &[u8], metadata: &NodeMetadata) {
        self.push(name, metadata, 0, None, None);
    }

    /// Adds a node as it is.
    pub fn push_node(&mut self, node: &Node) {
        let content = (node.metadata.node_type == NodeType::File).then_some(node.content.as_slice());
        self.begin(&node.name, &node.metadata, node.metadata.size);
        if let Some(attributes) = &node.generic_attributes {
            self.raw(",\"generic_attributes\":");
            serde_json::to_writer(&mut self.json, attributes).expect("values always serialise into memory");
        }
        self.end(&node.metadata, content, node.subtree);
        if let Some(error) = &node.error {
            self.json.pop();
            self.raw(",\"error\":");
            self.string(error);
            self.raw("}");
        }
    }

    /// The finished text, which is the content of the tree's blob.
    pub fn finish(mut self) -> Vec<u8> {
        self.raw("]}\n");
        self.json
    }

    fn push(
        &mut self,
        name: &[u8],
        metadata: &NodeMetadata,
        size: u64,
        content: Option<&[BlobId]>,
        subtree: Option<BlobId>,
    ) {
        self.begin(name, metadata, size);
        self.end(metadata, content, subtree);
    }

    fn begin(&mut self, name: &[u8], metadata: &NodeMetadata, size: u64) {
        self.raw(if self.entries == 0 { "{\"name\":" } else { ",{\"name\":" });
        self.entries += 1;
        self.name(name);
        self.raw(",\"type\":\"");
        self.raw(metadata.node_type.as_str());
        self.raw("\"");
        self.number_unless_zero(",\"mode\":", u64::from(to_go_mode(metadata.node_type, metadata.mode)));
        for (key, time) in [
            (",\"mtime\":\"", metadata.mtime),
            (",\"atime\":\"", metadata.atime),
            (",\"ctime\":\"", metadata.ctime),
        ] {
            self.raw(key);
            time.format_into(&mut self.json);
            self.raw("\"");
        }
        self.raw(",\"uid\":");
        self.number(u64::from(metadata.uid));
        self.raw(",\"gid\":");
        self.number(u64::from(metadata.gid));
        self.string_unless_empty(",\"user\":", metadata.user.as_deref());
        self.string_unless_empty(",\"group\":", metadata.group.as_deref());
        self.number_unless_zero(",\"inode\":", metadata.inode);
        // The number of a device changes between boots: it is stored where hard links need it to be told apart.
        if metadata.links > 1 && metadata.node_type != NodeType::Directory {
            self.number_unless_zero(",\"device_id\":", metadata.device_id);
        }
        self.number_unless_zero(",\"size\":", size);
        self.number_unless_zero(",\"links\":", metadata.links);
        if let Some(target) = metadata.link_target.as_deref() {
            self.link_target(target);
        }
        self.xattrs(&metadata.xattrs);
    }

    fn end(&mut self, metadata: &NodeMetadata, content: Option<&[BlobId]>, subtree: Option<BlobId>) {
        self.number_unless_zero(",\"device\":", metadata.device);
        self.raw(",\"content\":");
        match content {
            None => self.raw("null"),
            Some(blobs) => {
                self.json.push(b'[');
                for (index, blob) in blobs.iter().enumerate() {
                    if index > 0 {
                        self.json.push(b',');
                    }
                    self.id(blob);
                }
                self.json.push(b']');
            }
        }
        if let Some(subtree) = subtree {
            self.raw(",\"subtree\":");
            self.id(&subtree);
        }
        self.json.push(b'}');
    }

    fn link_target(&mut self, target: &[u8]) {
        match std::str::from_utf8(target) {
            Ok(text) => self.string_unless_empty(",\"linktarget\":", Some(text)),
            Err(_) => {
                self.raw(",\"linktarget\":");
                self.string(&String::from_utf8_lossy(target));
                self.raw(",\"linktarget_raw\":\"");
                let encoded = STANDARD.encode(target);
                self.raw(&encoded);
                self.raw("\"");
            }
        }
    }

    fn xattrs(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) {
        if xattrs.is_empty() {
            return;
        }
        self.raw(",\"extended_attributes\":[");
        for (index, (name, value)) in xattrs.iter().enumerate() {
            self.raw(if index > 0 { ",{\"name\":" } else { "{\"name\":" });
            self.string(&String::from_utf8_lossy(name));
            self.raw(",\"value\":");
            let encoded = STANDARD.encode(value);
            self.raw("\"");
            self.raw(&encoded);
            self.raw("\"}");
        }
        self.raw("]");
    }

    fn raw(&mut self, text: &str) {
        self.json.extend_from_slice(text.as_bytes());
    }

    fn id(&mut self, id: &BlobId) {
        let start = self.json.len();
        self.json.resize(start + 66, b'"');
        hex::encode_to_slice(id.as_bytes(), &mut self.json[start + 1..start + 65])
            .expect("32 bytes are 64 digits");
    }

    fn name(&mut self, name: &[u8]) {
        if quote::is_plain(name) {
            self.json.push(b'"');
            self.escaped(name);
            self.json.push(b'"');
        } else {
            let mut quoted = std::mem::take(&mut self.scratch);
            quoted.clear();
            quote::quote_into(name, &mut quoted);
            self.string(&quoted);
            self.scratch = quoted;
        }
    }

    fn number(&mut self, mut number: u64) {
        let mut digits = [0; 20];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.json.extend_from_slice(&digits[start..]);
    }

    fn number_unless_zero(&mut self, key: &str, number: u64) {
        if number != 0 {
            self.raw(key);
            self.number(number);
        }
    }

    fn string_unless_empty(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            self.raw(key);
            self.string(text);
        }
    }

    fn string(&mut self, text: &str) {
        self.json.push(b'"');
        self.escaped(text.as_bytes());
        self.json.push(b'"');
    }

    /// Escapes what Go's encoder escapes: control characters, quotes, backslashes, `<`, `>`, `&` and two separators.
    fn escaped(&mut self, text: &[u8]) {
        let mut start = 0;
        for (index, &byte) in text.iter().enumerate() {
            let special = byte < b' ' || matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&');
            let separator =
                byte == 0xe2 && matches!(text.get(index + 1..index + 3), Some([0x80, 0xa8 | 0xa9]));
            if !special && !separator {
                continue;
            }
            self.json.extend_from_slice(&text[start..index]);
            start = index + 1;
            match byte {
                b'"' => self.raw("\\\""),
                b'\\' => self.raw("\\\\"),
                b'\n' => self.raw("\\n"),
                b'\r' => self.raw("\\r"),
                b'\t' => self.raw("\\t"),
                0xe2 => {
                    let last = text[index + 2];
                    self.raw(if last == 0xa8 { "\\u2028" } else { "\\u2029" });
                    start = index + 3;
                }
                _ => {
                    let mut escape = String::with_capacity(6);
                    write!(escape, "\\u{byte:04x}").expect("a string takes any text");
                    self.raw(&escape);
                }
            }
        }
        self.json.extend_from_slice(&text[start.min(text.len())..]);
    }
}
