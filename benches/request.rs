//! Times the parts of a request: `cargo bench --features simulation --bench request`. With the feature `python` one of
//! them is building an environ, which needs a Python that can be linked to (`PYO3_PYTHON`).
//!
//! A machine with company times nothing well; `instructions` counts what does not drift.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

mod parts;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn all(criterion: &mut Criterion) {
    for mut part in parts::parts().into_iter().chain(parts::threaded()) {
        let mut group = criterion.benchmark_group(part.name);
        if let Some(bytes) = part.bytes {
            group.throughput(Throughput::Bytes(bytes));
        }
        group.bench_function("once", |bencher| bencher.iter(&mut part.run));
        group.finish();
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
