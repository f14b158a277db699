//! A call of the container runtime: bounded in time, and with an error that says what was tried.

use std::{future::Future, time::Duration};

use tonic::{Code, Response, Status};

use super::super::RuntimeError;

/// Lists and looks.
pub(super) const LOOK: Duration = Duration::from_secs(10);
/// Making, starting and removing a container, images included.
pub(super) const WORK: Duration = Duration::from_mins(1);
/// Making and removing a sandbox: the network plugins may wait for their agent.
pub(super) const SANDBOX: Duration = Duration::from_mins(2);
/// For fetching an image.
pub(super) const PULL: Duration = Duration::from_mins(10);
/// How much longer than its grace a stop may take.
pub(super) const KILL: Duration = Duration::from_secs(30);

/// Why the runtime did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// It said no, or is not there.
    #[error("{}", said(.0))]
    Status(Box<Status>),
    /// It did not answer.
    #[error("the container runtime did not answer within {} s: is it running?", .0.as_secs())]
    Timeout(Duration),
    /// It answered without the part that was asked for.
    #[error("the answer of the container runtime has no {0}")]
    Incomplete(&'static str),
}

impl CallError {
    /// What was asked about is not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Status(status) if status.code() == Code::NotFound)
    }

    /// The runtime ended what it was asked for, which took longer than it was allowed to.
    pub(super) fn is_deadline(&self) -> bool {
        matches!(self, Self::Status(status) if status.code() == Code::DeadlineExceeded)
    }

    /// With what was tried, and with which object.
    pub(super) fn of(self, operation: &'static str, object: &str) -> RuntimeError {
        RuntimeError { operation, object: object.to_owned(), source: self.into() }
    }
}

fn said(status: &Status) -> String {
    match status.code() {
        // The transport's own words do not say whose socket it is.
        Code::Unavailable => {
            format!("the container runtime cannot be reached: {}", status.message())
        }
        _ => status.message().to_owned(),
    }
}

/// Waits for an answer no longer than `limit`.
pub(super) async fn bounded<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    // Boxed: a call is large, and so would be everything that waits for one.
    match tokio::time::timeout(limit, Box::pin(call)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(CallError::Status(Box::new(status))),
        Err(_elapsed) => Err(CallError::Timeout(limit)),
    }
}

/// Success also where the object is not there.
pub(super) fn gone_is_done<T>(outcome: Result<T, CallError>) -> Result<(), CallError> {
    match outcome {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_done_and_everything_else_is_an_error() {
        let status = |code| Err::<(), _>(CallError::Status(Box::new(Status::new(code, "x"))));
        assert!(gone_is_done(status(Code::NotFound)).is_ok());
        assert!(gone_is_done(Ok(7)).is_ok());
        for code in [Code::Unavailable, Code::Internal, Code::Unknown] {
            assert!(gone_is_done(status(code)).is_err(), "{code:?}");
        }
        assert!(gone_is_done(Err::<(), _>(CallError::Timeout(LOOK))).is_err());
    }

    #[test]
    fn only_the_runtimes_own_word_says_that_a_command_took_too_long() {
        let status = |code| CallError::Status(Box::new(Status::new(code, "x")));
        assert!(status(Code::DeadlineExceeded).is_deadline());
        for code in [Code::Unavailable, Code::Unknown, Code::NotFound, Code::Cancelled] {
            assert!(!status(code).is_deadline(), "{code:?}");
        }
        assert!(!CallError::Timeout(LOOK).is_deadline());
    }

    #[tokio::test]
    async fn a_runtime_that_is_silent_is_not_waited_for() {
        let limit = Duration::from_millis(10);
        let silent = std::future::pending::<Result<Response<()>, Status>>();
        let error = bounded(limit, silent).await.unwrap_err();
        assert!(matches!(error, CallError::Timeout(_)), "{error}");
    }
}
