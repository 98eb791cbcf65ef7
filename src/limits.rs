//! Every fixed bound, with its unit and its reason. Bounds that users set are in `config::settings`.

/// Size of one receive buffer, in bytes. A request with large cookies fits one buffer and is parsed in place, and a form
/// or a JSON document comes in one event: an echoed body of 10 KiB cost 8 % more CPU with buffers of 4 KiB. Of a buffer that
/// holds a small request, only the first page is ever touched.
pub const RECV_BUFFER_BYTES: usize = 16 * 1024;

/// Receive buffers of one worker. One turn delivers at most 20 x 32 of them on Linux >= 6.13
/// (`io_uring` caps), and all are handled before the next turn. A power of two, as the ring wants.
pub const RECV_BUFFERS: u16 = 1024;
const _: () = assert!(RECV_BUFFERS.is_power_of_two());

/// Bytes of an application's piece that are copied behind the head, so that both leave in one
/// `send`. Larger pieces are sent from their own memory.
pub const COALESCE_BYTES_MAX: usize = 16 * 1024;

/// Bytes of an answer that any client's window holds, head included: what is heard behind it no longer can destroy no
/// part of it.
pub const LAST_ANSWER_BYTES_MAX: usize = 4 * 1024;

/// Bytes of an unsent rest that are copied for the I/O thread; of a larger piece a reference is kept, which costs a few
/// hundred nanoseconds: as much as copying this.
pub const REST_COPY_BYTES_MAX: usize = 4 * 1024;

/// Microseconds after the last part of an answer has left, in which the pieces that follow are kept back, to leave
/// together. Each by itself costs a system call, and often a wake-up of the client.
pub const HOLD_US: u64 = 200;

/// Milliseconds after which the I/O thread sends what is kept back: an application that pauses between two pieces, or
/// that blocks, delays none of them for longer.
pub const HOLD_MS: u64 = 1;

/// Bytes of an answer that are kept back at most: then they leave. An application that makes pieces reaches no more in
/// [`HOLD_US`]. A body of 1 MiB in pieces of 64 KiB took 376 microseconds of CPU without, 321 with 256 KiB, 232 with 512 KiB
/// and 150 with this.
pub const HOLD_BYTES_MAX: usize = 1024 * 1024;

/// Unsent response bytes of one connection above which the runner waits before it takes the next
/// piece from the application.
pub const RESPONSE_QUEUE_BYTES: usize = 256 * 1024;

/// Unsent bytes of all responses of one worker above which a runner waits even though its response is complete.
/// Below it slow readers cost memory that the application has filled anyway, and no thread.
pub const RESPONSE_QUEUES_BYTES: usize = 64 * 1024 * 1024;

/// Bytes kept of a connection's pipelined requests while one is being answered; receiving pauses
/// above it.
pub const PIPELINE_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a request body that nobody read and that are drained so that the connection can go on.
/// A larger rest costs the client its connection: reading it would cost us more.
pub const DRAIN_BYTES_MAX: u64 = 64 * 1024;

/// Bytes of buffer capacity an idle exchange box keeps for its next request.
pub const EXCHANGE_KEEP_BYTES: usize = 64 * 1024;

/// Bytes of chunk extensions in one request body. Nobody reads them, and a peer that sends little
/// else would keep us reading for nothing.
pub const CHUNK_EXTENSION_BYTES_MAX: usize = 16 * 1024;

/// Bytes of the trailer section of one request body. It is dropped, so this only has to be more
/// than a checksum or a signature takes.
pub const TRAILER_BYTES_MAX: usize = 32 * 1024;

/// Bytes of a PROXY protocol v2 header behind its first 16: the addresses and what a load balancer
/// adds to them. The protocol allows 64 KiB, which no sender comes near.
pub const PROXY_TAIL_BYTES_MAX: usize = 16 * 1024;

/// Bytes of the fields that an application sets on one response. More is a defect of the
/// application, and no client reads it: 8 to 256 KiB are usual bounds.
pub const RESPONSE_FIELDS_BYTES_MAX: usize = 1024 * 1024;

/// Connection slots that a ring's table may have: as many as a process has descriptors at most. A wrong slot number
/// is an error and not a gigabyte.
pub const SLOTS_MAX: u32 = 1 << 20;

/// Connections that the epoll backend takes from one listener in one turn. The rest wait for the
/// next turn, behind the bytes of connections that are already being served.
pub const ACCEPTS_PER_TURN: usize = 64;

/// Workers that may be asked for. More processes than this is a slip of the pen.
pub const WORKERS_MAX: usize = 4096;

/// Worker processes of one master at the same time. While workers are replaced, each slot may have a
/// successor beside its worker.
pub const RECORDS_MAX: usize = 2 * WORKERS_MAX;

/// Runner threads of one worker that may be asked for.
pub const THREADS_MAX: usize = 4096;

/// Connections of one worker that may be asked for: those that its ring has slots for.
pub const CONNECTIONS_MAX: usize = SLOTS_MAX as usize;

/// Connections to the metrics address that one worker holds; a further one is closed at once. They do not count
/// as `worker_connections`, so that a server that is full can be looked at.
pub const OBSERVERS_MAX: usize = 64;

/// Bytes that `limit_request_line` and `limit_request_field_size` may be set to. A head is held in
/// memory whole.
pub const HEAD_LIMIT_MAX: usize = 1 << 20;

/// Bytes that `body_buffer` may be set to; every connection may hold as many.
pub const BODY_BUFFER_MAX: usize = 1 << 30;

/// Bytes of log lines that wait for a slow disk or pipe; more are dropped and counted.
pub const LOG_BUFFER_BYTES: usize = 1024 * 1024;

/// Bytes of one log line. A head may hold a megabyte of user agent, which no log needs.
pub const LOG_LINE_BYTES_MAX: usize = 64 * 1024;

/// Exchange boxes kept for reuse by one worker: as many as requests come in a full turn. Beyond it
/// they are freed, so that a burst does not cost memory for ever.
pub const SPARE_EXCHANGES_MAX: usize = 256;

/// Requests that wait for runners above which a refused one is not queued for Python's access log. It holds its
/// connection's descriptor while it waits.
pub const REFUSED_WAITING_MAX: usize = 1024;

/// Pieces of blocking work of one native worker that wait for its threads; more are refused, and the service
/// decides what that means to its client.
pub const BLOCKING_QUEUE_MAX: usize = 1024;

/// Bytes of answers that a native service gives in one go before they are sent: more would only wait in our
/// memory for the socket's.
pub const INLINE_OUT_BYTES: usize = 64 * 1024;

/// Milliseconds between looks at the runners while requests wait (see `worker::pool`).
pub const BATCH_CHECK_MS: u64 = 1;

/// Milliseconds that the I/O thread leaves the network alone at most while its runner has enough to do (see
/// `worker::pool`): a connection that nobody had to wait for is accepted so much later. With 1, a Django view cost 4 %
/// more CPU.
pub const REST_MS: u64 = 3;

/// Microseconds that the I/O thread leaves the network alone at most when no request waits, but its runner has one in
/// hand and there are other connections. A runner that blocks is noticed after a millisecond anyway.
pub const SHORT_REST_US: u64 = 200;

/// Milliseconds that the I/O thread sleeps at most: its heartbeat, and the latest look at answers that
/// ended without waking it.
pub const HEARTBEAT_MS: u64 = 500;

/// Requests in hand of one worker that the master can name in the log, the oldest ones.
pub const IN_HAND_MAX: usize = 16;

/// Bytes of the text of each of them: method, path and peer, cut.
pub const IN_HAND_TEXT_BYTES: usize = 240;

/// Milliseconds after which a request in hand is worth naming. All that is quicker costs nothing.
pub const IN_HAND_PUBLISH_MS: u64 = 1_000;

/// Bytes of a request's beginning that are kept beside its connection, to name it in the log when it takes too long.
pub const REQUEST_LINE_NOTE_BYTES: usize = 120;
const _: () = assert!(REQUEST_LINE_NOTE_BYTES <= u8::MAX as usize);

/// Milliseconds that the interpreter is waited for, to show the stack of a request that takes too long. A thread that
/// runs Python lets others in after 5.
pub const STACK_PATIENCE_MS: u64 = 500;

/// Stacks that wait to be shown; of further requests the log has a line without a stack.
pub const REPORTS_WAITING_MAX: usize = 32;

/// Milliseconds before accepting is tried again when the process has run out of descriptors.
pub const ACCEPT_RETRY_MS: u64 = 100;

/// Milliseconds between two lines of the log about requests that are turned away: there are many of them.
pub const OVERLOAD_WARN_MS: u64 = 10_000;

/// Milliseconds between looks whether clients wait while a worker has all the connections that it may have.
pub const ROOM_CHECK_MS: u64 = 50;

/// Milliseconds that a connection is idle at least before it ends for a client that waits: a request may be on its
/// way on a younger one.
pub const ROOM_IDLE_MS: u64 = 500;

/// One in so many of a full worker's connections ends at a time.
pub const ROOM_SHARE: usize = 16;

/// Milliseconds between two lines of the log about accepting that fails: the cause lasts, the line need not
/// be repeated ten times a second.
pub const ACCEPT_WARN_MS: u64 = 10_000;

/// Bytes read and dropped of a closed connection while it waits (`linger_timeout`) for the client to close
/// too. Closing at once would reset the connection and may destroy the answer.
pub const LINGER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Connections of a worker that wait at the same time for the client to close too; a further one takes the place
/// of nobody and is closed at once. Each holds a descriptor for up to `linger_timeout`.
pub const LINGERING_MAX: usize = 4096;

/// Milliseconds that an idle connection stays open when its worker leaves, for a request that is already
/// on its way.
pub const DRAIN_IDLE_MS: u64 = 500;

/// Milliseconds that an idle connection stays open when its worker is replaced and the server goes on: for
/// longer pauses between two requests clients have learned to open a new connection.
pub const RETIRE_IDLE_MS: u64 = 10_000;

/// Milliseconds at a stop in which handshakes that had begun are completed: a round trip to clients that are not far away.
/// Those that begin meanwhile are refused a second later, when the client's kernel tries again; so it is short.
pub const HANDSHAKE_MS: u64 = 10;

/// Milliseconds after a stop until new clients are refused, however many come.
pub const CLOSE_ENTRANCE_MS: u64 = 500;

/// Descriptors of a worker that are not for connections: files and sockets of the application, listeners,
/// logs, rings.
pub const DESCRIPTORS_RESERVED: usize = 256;

/// Milliseconds that each log has to be written when its process ends. A dead pipe costs lines, not
/// a hanging process.
pub const LOG_FLUSH_MS: u64 = 1_000;

/// Milliseconds between two looks at the accept queues (`enable_backlog_metric`); gunicorn's.
pub const BACKLOG_MS: u64 = 1_000;

/// Milliseconds after which the master offers lines of the error log again that a stalled pipe has not taken.
pub const LOG_RETRY_MS: u64 = 500;

/// Messages that wait for Python's `logging`; further ones are counted and lost.
pub const LOG_QUEUE_LINES_MAX: usize = 1024;

/// Milliseconds that runners have to leave once the last connection is closed, or at a quick stop.
pub const QUICK_STOP_MS: u64 = 300;

/// Milliseconds that a request waits for a runner until its worker calls for help. More than a quick request
/// takes, and far less than a client notices.
pub const STALL_MS: u64 = 5;

/// Milliseconds between looks at the siblings while all runners are taken and nothing waits: somebody may have
/// become free to accept.
pub const STALLED_SURVEY_MS: u64 = 20;

/// Milliseconds without a heartbeat after which a worker's queue is served by its siblings. One and a half beats:
/// who is only late loses nothing by it.
pub const SILENT_MS: u64 = HEARTBEAT_MS + HEARTBEAT_MS / 2;

/// Requests that wait in a worker that nobody can help, above which it leaves new connections in the kernel's
/// queue: a crash cannot lose them there, and a sibling that becomes free can take them.
pub const STALLED_WAITING_MAX: usize = 64;

/// Milliseconds between looks at the queue beyond that bound. Clients that keep their connections busy would
/// otherwise shut new ones out for ever.
pub const STALLED_PEEK_MS: u64 = 100;

/// Bytes of requests that a connection may take along to a sibling. With more it stays: a letter of this size
/// fits the kernel's default buffer three times.
pub const PARCEL_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a whole letter to a sibling: a parcel with its addresses and, around a body that came in chunks, a few
/// lines. A longer one would arrive cut, and is not sent.
pub const LETTER_BYTES_MAX: usize = PARCEL_BYTES_MAX + 1024;

/// Requests given to one sibling before it is looked at again: a few milliseconds of work, so that a crowd of
/// them is spread and not moved.
pub const HAND_OVER_BATCH: usize = 16;

/// Siblings that are called to help at once. Each call wakes a thread.
pub const CALLS_MAX: usize = 4;

/// Letters taken from a mailbox in one turn; connections that are being served come in between.
pub const LETTERS_PER_TURN: usize = 64;

/// Connections that a worker must have more than the least loaded sibling, and twice as many, before new ones are
/// passed on. Chance alone spreads a hundred connections over two workers with a difference of ten.
pub const UNEVEN_CONNECTIONS: usize = 32;

/// Clients of the control socket at the same time: a few people, a few scripts.
pub const CONTROL_CLIENTS_MAX: usize = 16;

/// Bytes of one request on the control socket; a command is a few words.
pub const CONTROL_REQUEST_BYTES_MAX: usize = 16 * 1024;

/// Milliseconds that a client of the control socket has to complete a request, or to take an answer.
pub const CONTROL_PATIENCE_MS: u64 = 5_000;

/// Milliseconds that a client of the control socket may be silent between two requests; gunicorn's.
pub const CONTROL_IDLE_MS: u64 = 300_000;

/// Seconds that workers go on counting after somebody asked for their load: the most that may be asked for, twice the
/// longest interval of `ringhorn top` and some more. Whoever looks once and leaves costs the server no more than that.
pub const LOAD_WATCH_SECONDS_MAX: u64 = 150;

/// As many when the question does not say.
pub const LOAD_WATCH_SECONDS: u64 = 10;

/// Control sockets of one directory that are looked at.
pub const CONTROL_NAMES_MAX: usize = 64;
