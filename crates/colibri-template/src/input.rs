//! Input streams with a byte limit and cancellation.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::TemplateError;

/// A flag that makes [`init`](crate::init) stop and remove what it has created. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<AtomicBool>);

impl Cancellation {
    /// Requests the end of the operation. The operation checks the flag at least once per block of input.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns an error if the operation was cancelled.
    pub(crate) fn check(&self) -> Result<(), TemplateError> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(TemplateError::Cancelled),
            false => Ok(()),
        }
    }
}

/// The number of bytes that may still be unpacked. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct ByteBudget {
    limit: u64,
    left: Rc<Cell<u64>>,
}

impl ByteBudget {
    pub(crate) fn new(limit: u64) -> Self {
        let left = Rc::new(Cell::new(limit));
        Self { limit, left }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }
}

/// Why a [`BoundedReader`] fails, as the payload of an [`io::Error`].
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("it exceeds the limit of {0} bytes")]
    TooLarge(u64),
    #[error("cancelled")]
    Cancelled,
}

/// Returns the error for a failed read, if a [`BoundedReader`] caused it.
pub(crate) fn stop_error(error: &io::Error) -> Option<TemplateError> {
    match error.get_ref()?.downcast_ref::<Stop>()? {
        Stop::TooLarge(limit) => Some(TemplateError::TooLarge { limit: *limit }),
        Stop::Cancelled => Some(TemplateError::Cancelled),
    }
}

/// A reader that fails if its input is longer than the budget, or if the operation was cancelled.
pub(crate) struct BoundedReader<R> {
    inner: R,
    budget: ByteBudget,
    cancellation: Cancellation,
}

impl<R> BoundedReader<R> {
    pub(crate) fn new(inner: R, budget: &ByteBudget, cancellation: &Cancellation) -> Self {
        Self {
            inner,
            budget: budget.clone(),
            cancellation: cancellation.clone(),
        }
    }
}

impl<R: Read> Read for BoundedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Not ErrorKind::Interrupted, which callers retry.
        if self.cancellation.check().is_err() {
            return Err(io::Error::other(Stop::Cancelled));
        }
        let count = self.inner.read(buffer)?;
        let left = self.budget.left.get().checked_sub(count as u64);
        let left = left.ok_or_else(|| io::Error::other(Stop::TooLarge(self.budget.limit)))?;
        self.budget.left.set(left);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_input_and_cancellation_are_errors() {
        let cancellation = Cancellation::default();
        let read = |bytes: &[u8], budget: &ByteBudget| {
            let mut out = Vec::new();
            let mut reader = BoundedReader::new(bytes, budget, &cancellation);
            reader
                .read_to_end(&mut out)
                .map_err(|error| stop_error(&error))
        };
        let budget = ByteBudget::new(5);
        assert_eq!(read(b"abc", &budget).unwrap(), 3);
        assert_eq!(read(b"de", &budget).unwrap(), 2);
        assert!(matches!(
            read(b"f", &budget),
            Err(Some(TemplateError::TooLarge { limit: 5 }))
        ));
        cancellation.cancel();
        assert!(matches!(
            read(b"", &budget),
            Err(Some(TemplateError::Cancelled))
        ));
    }
}
