//! The one table of error code ↔ gRPC status. The code, the causes and the next commands travel as `google.rpc`
//! details, so that any client sees `HF-nnnn` as `ErrorInfo.reason`.

use std::collections::HashMap;

use holdfast_model::text::cut;
use holdfast_model::{Category, ErrorCode, Failure};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of our `ErrorInfo`.
pub const ERROR_DOMAIN: &str = "holdfast";

/// The gRPC code of a category.
pub fn grpc_code(category: Category) -> Code {
    match category {
        Category::Usage => Code::InvalidArgument,
        Category::Failed | Category::Partial => Code::Internal,
        Category::NotFound => Code::NotFound,
        Category::Denied => Code::PermissionDenied,
        Category::Conflict => Code::Aborted,
        Category::Unreachable => Code::Unavailable,
        Category::Timeout => Code::DeadlineExceeded,
        Category::NeedsConfirmation => Code::FailedPrecondition,
        Category::DataBad => Code::DataLoss,
    }
}

/// A failure as a gRPC status.
pub fn to_status(failure: &Failure) -> Status {
    let code = match failure.code {
        ErrorCode::NotAuthenticated => Code::Unauthenticated,
        other => grpc_code(other.category()),
    };
    let mut metadata = HashMap::new();
    // Bounded: a status travels in a header of at most 16 KiB, so the chain of causes is cut short.
    for (index, why) in failure.why.iter().take(8).enumerate() {
        metadata.insert(format!("why{index}"), cut(why, 700));
    }
    for (index, next) in failure.next.iter().take(4).enumerate() {
        metadata.insert(format!("next{index}"), cut(next, 300));
    }
    if let Some(now) = &failure.now {
        metadata.insert("now".to_owned(), cut(now, 300));
    }
    let details = ErrorDetails::with_error_info(failure.code.to_string(), ERROR_DOMAIN, metadata);
    Status::with_error_details(code, cut(&failure.message, 1500), details)
}

/// The failure that a status carries; one without our details becomes the nearest code.
pub fn from_status(status: &Status) -> Failure {
    if let Some(info) = status.get_details_error_info()
        && info.domain == ERROR_DOMAIN
        && let Ok(code) = info.reason.parse::<ErrorCode>()
    {
        let mut failure = Failure::new(code, status.message());
        let numbered = |prefix: &str| -> Vec<String> {
            (0..).map_while(|index| info.metadata.get(&format!("{prefix}{index}")).cloned()).collect()
        };
        failure.why = numbered("why");
        failure.next = numbered("next");
        failure.now = info.metadata.get("now").cloned();
        return failure;
    }
    let code = match status.code() {
        Code::Unauthenticated => ErrorCode::NotAuthenticated,
        Code::PermissionDenied => ErrorCode::NotPermitted,
        Code::NotFound => ErrorCode::NotFound,
        Code::InvalidArgument | Code::OutOfRange => ErrorCode::UsageInvalid,
        Code::AlreadyExists => ErrorCode::AlreadyExists,
        Code::Aborted | Code::FailedPrecondition => ErrorCode::VersionConflict,
        Code::Unavailable => ErrorCode::ControllerUnreachable,
        Code::DeadlineExceeded => ErrorCode::WatchTimeout,
        Code::Unimplemented => ErrorCode::Unsupported,
        Code::ResourceExhausted => ErrorCode::QueueFull,
        _ => ErrorCode::Internal,
    };
    let mut failure = Failure::new(code, status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(inner) = cause {
        failure.why.push(inner.to_string());
        cause = inner.source();
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_wire() {
        let failure = Failure::new(ErrorCode::SourceLoginRefused, "login refused for role \"holdfast\"")
            .because("password authentication failed (28P01)")
            .at_stake("nothing was committed")
            .then("holdfast source test pg-main");
        assert_eq!(from_status(&to_status(&failure)), failure);
    }

    #[test]
    fn every_code_keeps_its_number_on_the_wire() {
        for &code in ErrorCode::ALL {
            assert_eq!(from_status(&to_status(&Failure::new(code, "x"))).code, code);
        }
    }

    #[test]
    fn a_huge_failure_fits_into_a_header() {
        let mut failure = Failure::new(ErrorCode::Internal, "ü".repeat(100_000));
        failure.why = vec!["y".repeat(100_000); 100];
        let status = to_status(&failure);
        assert!(status.message().len() + status.details().len() < 12 * 1024, "{}", status.details().len());
    }
}
