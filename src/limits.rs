//! Every fixed bound, with its unit and its reason. Bounds that users set are in `config::settings`.

/// Size of one receive buffer, in bytes. A request with large cookies still fits one buffer and is
/// parsed in place; 8 KiB would double the pool for few requests (`shared pool`: see below).
pub const RECV_BUFFER_BYTES: usize = 4096;

/// Receive buffers of one worker. One turn delivers at most 20 x 32 of them on Linux >= 6.13
/// (`io_uring` caps), and all are handled before the next turn. A power of two, as the ring wants.
pub const RECV_BUFFERS: u16 = 1024;
const _: () = assert!(RECV_BUFFERS.is_power_of_two());

/// Bytes of an application's piece that are copied behind the head, so that both leave in one
/// `send`. Larger pieces are sent from their own memory.
pub const COALESCE_BYTES_MAX: usize = 16 * 1024;

/// Bytes of an unsent rest that are copied for the I/O thread; of a larger piece a reference is kept.
pub const REST_COPY_BYTES_MAX: usize = 64 * 1024;

/// Unsent response bytes of one connection above which the runner waits before it takes the next
/// piece from the application.
pub const RESPONSE_QUEUE_BYTES: usize = 256 * 1024;

/// Bytes kept of a connection's pipelined requests while one is being answered; receiving pauses
/// above it.
pub const PIPELINE_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a request body that nobody read and that are drained so that the connection can go on.
/// A larger rest costs the client its connection: reading it would cost us more.
pub const DRAIN_BYTES_MAX: u64 = 64 * 1024;

/// Bytes of buffer capacity an idle exchange box keeps for its next request.
pub const EXCHANGE_KEEP_BYTES: usize = 64 * 1024;

/// Workers that may be asked for. More processes than this is a slip of the pen.
pub const WORKERS_MAX: usize = 4096;

/// Runner threads of one worker that may be asked for.
pub const THREADS_MAX: usize = 4096;

/// Connections of one worker that may be asked for: the slots that an event's token can name.
pub const CONNECTIONS_MAX: usize = 1 << 24;

/// Bytes that `limit_request_line` and `limit_request_field_size` may be set to. A head is held in
/// memory whole.
pub const HEAD_LIMIT_MAX: usize = 1 << 20;

/// Bytes that `body_buffer` may be set to; every connection may hold as many.
pub const BODY_BUFFER_MAX: usize = 1 << 30;

/// Bytes of log lines that wait for a slow disk or pipe; more are dropped and counted.
pub const LOG_BUFFER_BYTES: usize = 1024 * 1024;

/// Bytes of one log line. A head may hold a megabyte of user agent, which no log needs.
pub const LOG_LINE_BYTES_MAX: usize = 64 * 1024;
