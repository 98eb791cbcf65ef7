//! A host without Python: for native services and for tests.

use super::{Host, WorkerContext};

/// Runs a closure in each worker.
#[derive(Debug)]
pub struct NativeHost<F> {
    serve: F,
}

impl<F: FnMut(WorkerContext) -> i32> NativeHost<F> {
    /// A host whose workers run `serve` and exit with what it returns.
    pub const fn new(serve: F) -> Self {
        Self { serve }
    }
}

impl<F: FnMut(WorkerContext) -> i32> Host for NativeHost<F> {
    fn serve(&mut self, worker: WorkerContext) -> i32 {
        (self.serve)(worker)
    }
}
