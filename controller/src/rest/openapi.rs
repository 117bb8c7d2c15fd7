//! The OpenAPI document, made from the table of routes.

use std::collections::BTreeMap;

use holdfast_model::Failure;
use serde_json::{Map, Value, json};

use super::reply::Reply;
use super::request::{Call, Form};
use super::routes::{Answer, ROUTES, Route};
use crate::access::{Access, METHODS, Role};

pub(super) async fn document(_: Call) -> Result<Reply, Failure> {
    Ok(Reply::Document("application/json", describe().to_string()))
}

/// OpenAPI 3.1 of all routes.
pub(crate) fn describe() -> Value {
    let mut schemas = Map::new();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in ROUTES {
        let operation = operation(route, &mut schemas);
        paths.entry(route.path).or_default().insert(route.verb.as_str().to_lowercase(), operation);
    }
    schemas.insert("Error".to_owned(), error_schema());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast",
            "version": crate::VERSION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": "Health, metrics and the everyday calls of a Holdfast controller. Everything else is gRPC.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "responses": {
                "Error": {
                    "description": "What went wrong, with a code that has a page: holdfast explain HF-nnnn",
                    "content": { "application/json": { "schema": reference("Error") } },
                }
            },
        },
    })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn operation(route: &Route, schemas: &mut Map<String, Value>) -> Value {
    let mut parameters: Vec<Value> = Vec::new();
    for part in route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
        let schema = json!({ "type": "string" });
        parameters.push(json!({ "name": part, "in": "path", "required": true, "schema": schema }));
    }
    for parameter in route.query {
        let kind = match parameter.form {
            Form::Text => "string",
            Form::Number => "integer",
            Form::Flag => "boolean",
        };
        parameters.push(json!({
            "name": parameter.name, "in": "query", "description": parameter.about, "schema": { "type": kind },
        }));
    }
    if route.is_repeatable {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "schema": { "type": "string", "maxLength": 128 },
            "description": "The same key with the same request answers what the first one began, and begins nothing.",
        }));
    }
    let (is_public, roles) = access_of(route);
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.about,
        "description": roles,
        "parameters": parameters,
        "security": if is_public { json!([]) } else { json!([{ "token": [] }]) },
        "responses": {
            route.status.to_string(): { "description": "As asked.", "content": contents(route, schemas) },
            "default": { "$ref": "#/components/responses/Error" },
        },
    });
    if let Some(plan) = route.plan {
        let content = envelope(plan.kind, &add(schemas, (plan.schema)()), false);
        operation["responses"]["200"] = json!({ "description": "What would be done.", "content": content });
    }
    if let Some(body) = route.body {
        let name = add(schemas, body());
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": reference(&name) } } });
    }
    operation
}

/// Whether nobody needs to be known, and who may.
fn access_of(route: &Route) -> (bool, String) {
    let key = route.key();
    match METHODS.iter().find(|(method, _)| *method == key).map(|(_, access)| *access) {
        Some(Access::Public) => (true, "For everybody.".to_owned()),
        Some(Access::Roles(roles)) => {
            let mut names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
            names.push(Role::Admin.as_str());
            (false, format!("For tokens with one of these roles: {}.", names.join(", ")))
        }
        _ => (false, "For nobody.".to_owned()),
    }
}

fn operation_id(route: &Route) -> String {
    let words = route.path.trim_start_matches("/api/v1").split(['/', '.']).filter(|word| !word.is_empty());
    let words = words.map(|word| word.trim_matches(['{', '}']).to_owned());
    let words: Vec<String> = std::iter::once(route.verb.as_str().to_lowercase()).chain(words).collect();
    words.join("_")
}

fn contents(route: &Route, schemas: &mut Map<String, Value>) -> Value {
    let mut contents = content(route, schemas);
    for form in route.forms {
        contents[form.content_type] = json!({});
    }
    contents
}

fn content(route: &Route, schemas: &mut Map<String, Value>) -> Value {
    match route.answer {
        Answer::Other(content_type) => json!({ content_type: {} }),
        Answer::Items(schema) => {
            let has_pages = route.query.iter().any(|parameter| parameter.name == "cursor");
            envelope(route.kind, &add(schemas, schema()), has_pages)
        }
    }
}

/// Items of a form in the envelope.
fn envelope(kind: &str, item: &str, has_pages: bool) -> Value {
    let mut properties = json!({
        "api": { "const": holdfast_model::fleet::API },
        "kind": { "const": kind },
        "generated_at": { "type": "string", "format": "date-time" },
        "items": { "type": "array", "items": reference(item) },
    });
    if has_pages {
        let about = "Where the next page begins; absent on the last one.";
        properties["next_cursor"] = json!({ "type": "string", "description": about });
    }
    let required = ["api", "kind", "generated_at", "items"];
    let schema = json!({ "type": "object", "required": required, "properties": properties });
    json!({ "application/json": { "schema": schema } })
}

/// Adds a schema, and those that it stands on, to the shared ones; gives its name.
fn add(schemas: &mut Map<String, Value>, schema: schemars::Schema) -> String {
    let mut value = schema.to_value();
    let title = value["title"].as_str().unwrap_or_default().trim_end_matches("View").to_owned();
    let Some(object) = value.as_object_mut() else { return title };
    object.remove("$schema");
    if let Some(Value::Object(definitions)) = object.remove("$defs") {
        for (name, mut definition) in definitions {
            point_to_components(&mut definition);
            schemas.insert(name, definition);
        }
    }
    point_to_components(&mut value);
    schemas.insert(title.clone(), value);
    title
}

fn point_to_components(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get_mut("$ref") {
                *target = target.replace("#/$defs/", "#/components/schemas/");
            }
            map.values_mut().for_each(point_to_components);
        }
        Value::Array(items) => items.iter_mut().for_each(point_to_components),
        _ => {}
    }
}

fn error_schema() -> Value {
    let texts = json!({ "type": "array", "items": { "type": "string" } });
    json!({
        "type": "object",
        "required": ["error"],
        "properties": { "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": { "type": "string", "pattern": "^HF-[0-9]{4}$" },
                "message": { "type": "string" },
                "why": texts,
                "now": { "type": "string" },
                "next": texts,
            },
        } },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    found.insert(target.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_route_is_described_once_and_nothing_else_is() {
        let document = describe();
        let mut described = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for method in operations.as_object().unwrap().keys() {
                described.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
        assert_eq!(described, ROUTES.iter().map(Route::key).collect());
        let ids: BTreeSet<String> = ROUTES.iter().map(operation_id).collect();
        assert_eq!(ids.len(), ROUTES.len(), "{ids:?}");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = describe();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.contains("#/components/schemas/Snapshot"), "{found:?}");
        for target in found {
            assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target}");
        }
    }

    #[test]
    fn what_is_public_says_so_and_everything_else_needs_a_token() {
        let document = describe();
        assert_eq!(document["paths"]["/ping"]["get"]["security"], json!([]));
        assert_eq!(document["paths"]["/metrics"]["get"]["security"], json!([{ "token": [] }]));
    }
}
