//! From a tree and samples to the samples that fit. Once through the samples of each metric in the expression.

use std::collections::BTreeMap;

use super::{Match, Matcher, MetricFamily, Node, Operator, Sample};

type Labels = BTreeMap<String, String>;

/// One number, or a number for each set of labels.
enum Value {
    Scalar(f64),
    Vector(BTreeMap<Labels, f64>),
}

pub(super) fn evaluate(root: &Node, families: &[MetricFamily], unix_seconds: f64) -> Vec<Match> {
    match value(root, families, unix_seconds) {
        // Never so: what was parsed is a condition over at least one metric.
        Value::Scalar(_) => Vec::new(),
        Value::Vector(samples) => {
            samples.into_iter().map(|(labels, value)| Match { labels, value }).collect()
        }
    }
}

fn value(node: &Node, families: &[MetricFamily], time: f64) -> Value {
    match node {
        Node::Number(number) => Value::Scalar(*number),
        Node::Time => Value::Scalar(time),
        Node::Metric { name, matchers } => Value::Vector(select(name, matchers, families)),
        Node::Negative(inner) => match value(inner, families, time) {
            Value::Scalar(number) => Value::Scalar(-number),
            Value::Vector(samples) => {
                Value::Vector(samples.into_iter().map(|(labels, number)| (labels, -number)).collect())
            }
        },
        Node::Binary { operator, left, right } => {
            combine(*operator, value(left, families, time), value(right, families, time))
        }
    }
}

/// Samples of a histogram go by the name of the family and their suffix.
fn select(name: &str, matchers: &[Matcher], families: &[MetricFamily]) -> BTreeMap<Labels, f64> {
    let mut selected = BTreeMap::new();
    for family in families {
        let Some(suffix) = name.strip_prefix(family.name) else { continue };
        for sample in family.samples.iter().filter(|sample| sample.suffix == suffix) {
            if matchers.iter().all(|matcher| fits(matcher, sample)) {
                let labels = sample.labels.iter().map(|(label, value)| ((*label).to_owned(), value.clone()));
                selected.insert(labels.collect(), sample.value);
            }
        }
    }
    selected
}

/// A label that is not there is as good as an empty one.
fn fits(matcher: &Matcher, sample: &Sample) -> bool {
    let found = sample.labels.iter().find(|(label, _)| *label == matcher.label);
    let value = found.map_or("", |(_, value)| value.as_str());
    (value == matcher.value) == matcher.equal
}

fn combine(operator: Operator, left: Value, right: Value) -> Value {
    use Value::{Scalar, Vector};
    match (left, right) {
        (Scalar(left), Scalar(right)) => Scalar(calculate(operator, left, right).unwrap_or(f64::NAN)),
        (Vector(left), Scalar(right)) => Vector(
            left.into_iter()
                .filter_map(|(labels, left)| Some((labels, calculate(operator, left, right)?)))
                .collect(),
        ),
        (Scalar(left), Vector(right)) => Vector(
            right
                .into_iter()
                .filter_map(|(labels, right)| {
                    // What a comparison keeps is the sample, on whichever side it is.
                    let value = calculate(operator, left, right)?;
                    Some((labels, if operator.is_comparison() { right } else { value }))
                })
                .collect(),
        ),
        (Vector(left), Vector(right)) => Vector(join(operator, left, right)),
    }
}

fn join(
    operator: Operator,
    mut left: BTreeMap<Labels, f64>,
    right: BTreeMap<Labels, f64>,
) -> BTreeMap<Labels, f64> {
    match operator {
        Operator::Or => {
            for (labels, value) in right {
                left.entry(labels).or_insert(value);
            }
        }
        Operator::And => left.retain(|labels, _| right.contains_key(labels)),
        Operator::Unless => left.retain(|labels, _| !right.contains_key(labels)),
        operator => {
            return left
                .into_iter()
                .filter_map(|(labels, left)| {
                    let value = calculate(operator, left, *right.get(&labels)?)?;
                    Some((labels, value))
                })
                .collect();
        }
    }
    left
}

/// The result; of a comparison the left side, or nothing when it does not hold.
fn calculate(operator: Operator, left: f64, right: f64) -> Option<f64> {
    let holds = |holds: bool| holds.then_some(left);
    match operator {
        Operator::Add => Some(left + right),
        Operator::Subtract => Some(left - right),
        Operator::Multiply => Some(left * right),
        Operator::Divide => Some(left / right),
        Operator::Equal => holds(left == right),
        Operator::Unequal => holds(left != right),
        Operator::Greater => holds(left > right),
        Operator::GreaterOrEqual => holds(left >= right),
        Operator::Less => holds(left < right),
        Operator::LessOrEqual => holds(left <= right),
        // Conditions are samples on both sides: they are joined, not calculated.
        Operator::Or | Operator::And | Operator::Unless => None,
    }
}
