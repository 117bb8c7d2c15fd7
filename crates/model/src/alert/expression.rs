//! The language of alert rules: a part of PromQL, with the meaning that it has there.
//!
//! ```text
//! condition  = or [ "for" DURATION ]
//! or         = and { "or" and }
//! and        = comparison { ( "and" | "unless" ) comparison }
//! comparison = sum [ ( "==" | "!=" | ">" | ">=" | "<" | "<=" ) sum ]
//! sum        = product { ( "+" | "-" ) product }
//! product    = unary { ( "*" | "/" ) unary }
//! unary      = [ "-" ] ( NUMBER | "time()" | "(" or ")" | metric )
//! metric     = NAME [ "{" LABEL ( "=" | "!=" ) STRING { "," … } "}" ]
//! ```
//!
//! Two metrics meet where all their labels are the same. A sample for which the condition holds is one alert. What an
//! expression costs is bounded: by its length, its depth, and once through the samples of each metric in it.

use std::collections::BTreeMap;

use crate::metrics::{MetricFamily, Sample};
use crate::units::Span;

mod evaluate;
mod parse;

/// The longest expression, in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 1000;

/// How deep parentheses and signs may be nested.
const DEPTH_MAX: usize = 20;

/// What is wrong with an expression, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExpressionError {
    /// How many characters lie before the place.
    pub at: usize,
    /// What is wrong, with a suggestion where there is one.
    pub message: String,
}

/// An expression that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    root: Node,
    hold: Option<Span>,
}

/// A sample for which the condition holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    /// The labels of the sample.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Number(f64),
    Time,
    Metric { name: String, matchers: Vec<Matcher> },
    Negative(Box<Node>),
    Binary { operator: Operator, left: Box<Node>, right: Box<Node> },
}

#[derive(Debug, Clone, PartialEq)]
struct Matcher {
    label: String,
    equal: bool,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Or,
    And,
    Unless,
    Equal,
    Unequal,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
}

impl Operator {
    fn is_comparison(self) -> bool {
        use Operator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, Unequal};
        matches!(self, Equal | Unequal | Greater | GreaterOrEqual | Less | LessOrEqual)
    }

    fn joins_conditions(self) -> bool {
        matches!(self, Operator::Or | Operator::And | Operator::Unless)
    }
}

impl Node {
    /// Whether it is one number rather than a number for each sample.
    fn is_scalar(&self) -> bool {
        match self {
            Node::Number(_) | Node::Time => true,
            Node::Metric { .. } => false,
            Node::Negative(inner) => inner.is_scalar(),
            Node::Binary { left, right, .. } => left.is_scalar() && right.is_scalar(),
        }
    }

    /// Whether it selects samples rather than calculates with them.
    fn is_condition(&self) -> bool {
        matches!(self, Node::Binary { operator, .. }
            if operator.is_comparison() || operator.joins_conditions())
    }
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// Says what is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        parse::parse(text)
    }

    /// How long it must hold, when the expression says so.
    pub fn hold(&self) -> Option<Span> {
        self.hold
    }

    /// The samples for which it holds, in the order of their labels. `unix_seconds` is what `time()` gives.
    pub fn matches(&self, families: &[MetricFamily], unix_seconds: f64) -> Vec<Match> {
        evaluate::evaluate(&self.root, families, unix_seconds)
    }
}

#[cfg(test)]
mod tests;
