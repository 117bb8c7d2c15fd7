use proptest::prelude::*;

use super::*;
use holdfast_model::ErrorCode;

fn id() -> BlobId {
    BlobId::of(b"tree")
}

fn encode(nodes: &[Node]) -> Vec<u8> {
    let mut encoder = TreeEncoder::new();
    for node in nodes {
        encoder.push_node(node);
    }
    encoder.finish()
}

fn types() -> impl Strategy<Value = NodeType> {
    prop::sample::select(vec![
        NodeType::File,
        NodeType::Directory,
        NodeType::Symlink,
        NodeType::BlockDevice,
        NodeType::CharDevice,
        NodeType::Fifo,
        NodeType::Socket,
    ])
}

fn times() -> impl Strategy<Value = FileTime> {
    (-62_167_219_200i64..253_402_300_799, 0u32..1_000_000_000).prop_map(|(s, n)| FileTime::new(s, n))
}

prop_compose! {
    fn metadata()(
        node_type in types(), mode in 0u32..0o10000, mtime in times(), atime in times(), ctime in times(),
        owner in any::<(u32, u32)>(), user in prop::option::of("[a-z<>&\"\\\\\u{1}-\u{1f}é\u{2028}]{1,8}"),
        inode in any::<u64>(), size in any::<u64>(), target in prop::collection::vec(1u8.., 1..20),
        xattrs in prop::collection::btree_map("user\\.[a-z]{1,8}", prop::collection::vec(any::<u8>(), 0..20), 0..3),
    ) -> NodeMetadata {
        NodeMetadata {
            mode, mtime, atime, ctime, uid: owner.0, gid: owner.1, user: user.map(Arc::from), inode,
            size: if node_type == NodeType::File { size } else { 0 },
            link_target: (node_type == NodeType::Symlink).then_some(target),
            xattrs: xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
            ..NodeMetadata::plain(node_type, mode, mtime)
        }
    }
}

proptest! {
    #[test]
    fn a_tree_with_any_names_reads_back(
        entries in prop::collection::btree_map(
            prop::collection::vec(any::<u8>(), 1..30).prop_filter("safe", |name| name_is_safe(name)),
            (metadata(), prop::collection::vec(any::<[u8; 32]>(), 0..3)),
            0..10,
        )
    ) {
        let nodes: Vec<Node> = entries.into_iter().map(|(name, (metadata, content))| {
            let mut node = Node::new(name, metadata);
            match node.metadata.node_type {
                NodeType::File => node.content = content.into_iter().map(BlobId::from_bytes).collect(),
                NodeType::Directory => node.subtree = Some(id()),
                _ => {}
            }
            node
        }).collect();
        let json = encode(&nodes);
        let ends_with_a_newline = json.ends_with(b"]}\n");
        prop_assert!(ends_with_a_newline);
        let tree = Tree::parse(&id(), &json).unwrap();
        prop_assert_eq!(&tree.nodes, &nodes);
        prop_assert_eq!(encode(&tree.nodes), json);
    }

    #[test]
    fn any_text_is_a_tree_or_an_error_and_never_a_panic(text in r#"\{"nodes":\[(\{"name":"[a-z\\\\x0-9]{0,4}","type":"(file|dir|x)"[^}]{0,20}\},?){0,3}\]\}"#) {
        let _ = Tree::parse(&id(), text.as_bytes());
    }
}

#[test]
fn the_text_of_a_file_is_that_of_restic() {
    let mut metadata = NodeMetadata::plain(NodeType::File, 0o4644, FileTime::new(1_418_000_000, 345_135_380));
    metadata.user = Some(Arc::from("fd0"));
    (metadata.uid, metadata.gid, metadata.inode, metadata.size, metadata.links) = (1000, 100, 7, 1234, 1);
    let mut node = Node::new("a<b>&\"c", metadata);
    node.content = vec![BlobId::of(b"")];
    let expected = concat!(
        r#"{"nodes":[{"name":"a\u003cb\u003e\u0026\\\"c","type":"file","mode":8389028,"#,
        r#""mtime":"2014-12-08T00:53:20.34513538Z","atime":"2014-12-08T00:53:20.34513538Z","#,
        r#""ctime":"2014-12-08T00:53:20.34513538Z","uid":1000,"gid":100,"user":"fd0","inode":7,"size":1234,"links":1,"#,
        r#""content":["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}]}"#,
        "\n"
    );
    assert_eq!(String::from_utf8(encode(&[node])).unwrap(), expected);
}

#[test]
fn an_empty_file_has_an_empty_list_and_others_have_none() {
    let time = FileTime::default();
    let nodes = [
        Node::new("a", NodeMetadata::plain(NodeType::File, 0o600, time)),
        Node::new("b", NodeMetadata::plain(NodeType::Fifo, 0o600, time)),
    ];
    let text = String::from_utf8(encode(&nodes)).unwrap();
    assert_eq!((text.matches(r#""content":[]"#).count(), text.matches(r#""content":null"#).count()), (1, 1));
}

#[test]
fn a_link_target_that_is_no_text_is_kept_raw() {
    let mut node = Node::new("l", NodeMetadata::plain(NodeType::Symlink, 0o777, FileTime::default()));
    node.metadata.link_target = Some(b"to/\xff".to_vec());
    let json = encode(std::slice::from_ref(&node));
    assert!(String::from_utf8_lossy(&json).contains(r#""linktarget":"to/�","linktarget_raw":"dG8v/w==""#));
    assert_eq!(Tree::parse(&id(), &json).unwrap().nodes, [node]);
}

#[test]
fn attributes_of_newer_clients_survive() {
    let json = br#"{"nodes":[{"name":"a","type":"file","mode":420,"later":[1],"mtime":"2024-01-01T00:00:00Z","content":null,
        "generic_attributes":{"windows.file_attributes":32,"x.y":{"b":1}}}]}"#;
    let tree = Tree::parse(&id(), json).unwrap();
    let again = Tree::parse(&id(), &encode(&tree.nodes)).unwrap();
    assert_eq!(again, tree);
    assert_eq!(tree.nodes[0].generic_attributes.as_ref().unwrap()["x.y"]["b"], 1);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in ["", ".", "..", "a/b", "/", r"..\\x2f", r"\\x00", r"\\x2e\\x2e", r"a\\057b"] {
        let json = format!(r#"{{"nodes":[{{"name":"{name}","type":"fifo"}}]}}"#);
        assert_eq!(Tree::parse(&id(), json.as_bytes()).unwrap_err().code(), ErrorCode::UnsafePath, "{name}");
    }
}

#[test]
fn malformed_trees_are_damaged() {
    for json in [
        "",
        "[]",
        r#"{"nodes":[{"name":"a"}]}"#,
        r#"{"nodes":[{"name":"a","type":"whale"}]}"#,
        r#"{"nodes":[{"name":"a","type":"dir"}]}"#,
        r#"{"nodes":[{"name":"a","type":"file","mtime":"yesterday"}]}"#,
        r#"{"nodes":[{"name":"a","type":"file","content":["00"]}]}"#,
        r#"{"nodes":[{"name":"a","type":"fifo"},{"name":"a","type":"fifo"}]}"#,
        r#"{"nodes":[{"name":"\\q","type":"fifo"}]}"#,
    ] {
        assert_eq!(
            Tree::parse(&id(), json.as_bytes()).unwrap_err().code(),
            ErrorCode::ObjectDamaged,
            "{json}"
        );
    }
    for json in [r#"{"nodes":null}"#, r#"{"nodes":[]}"#, "{}"] {
        assert_eq!(Tree::parse(&id(), json.as_bytes()).unwrap(), Tree::default());
    }
}

#[test]
fn entries_out_of_order_are_sorted() {
    let json = br#"{"nodes":[{"name":"b","type":"fifo"},{"name":"a","type":"fifo"}]}"#;
    let tree = Tree::parse(&id(), json).unwrap();
    assert_eq!(tree.find(b"a").map(|node| &node.name[..]), Some(&b"a"[..]));
    assert_eq!(tree.nodes[1].name, b"b");
}
