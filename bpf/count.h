// SPDX-License-Identifier: GPL-2.0-only
/* Counters. Each CPU has its own, and XDP does not migrate while it runs, so plain additions do. */

/* Count a packet under its verdict. Returns `action`, for the program to return. */
static __always_inline int count(enum verdict reason, enum xdp_action action)
{
	u32 index = reason;
	u64 *packets = verdicts.lookup(&index);

	NOTE(verdict, index);
	if (packets)
		(*packets)++;
	return action;
}

static __always_inline int drop(enum verdict reason)
{
	return count(reason, XDP_DROP);
}

/* The loader puts the number of rows that each CPU has in the places of these: reconciler/kernel/build.py. */
#define SERVICE_ROWS 0x7365727669636501ULL
#define ENDPOINT_ROWS 0x656e64706f696e01ULL

/* The counters of a service that this CPU has. */
static __always_inline struct traffic *find_service_counters(u32 service)
{
	u64 rows = SERVICE_ROWS;
	u32 row;

	OPAQUE(rows);
	row = bpf_get_smp_processor_id() * rows + service;
	return service_counters.lookup(&row);
}

/* What this CPU has of an endpoint. */
static __always_inline struct endpoint_line *find_endpoint_line(u32 endpoint)
{
	u64 rows = ENDPOINT_ROWS;
	u32 row;

	OPAQUE(rows);
	row = bpf_get_smp_processor_id() * rows + endpoint;
	return endpoint_counters.lookup(&row);
}

/* Count a SYN of a connection that a SYN has opened before. */
static __always_inline void count_unanswered(u32 endpoint)
{
	u64 *syns = unanswered.lookup(&endpoint);

	if (syns)
		__sync_fetch_and_add(syns, 1);
}

static __always_inline void count_connection(u32 service, u32 endpoint)
{
	struct endpoint_line *of_endpoint = find_endpoint_line(endpoint);
	struct traffic *of_service = find_service_counters(service);

	if (of_service)
		of_service->connections++;
	if (of_endpoint)
		of_endpoint->connections++;
}

static __always_inline void count_request(u32 service, u32 endpoint, u32 bytes)
{
	struct endpoint_line *of_endpoint = find_endpoint_line(endpoint);
	struct traffic *of_service = find_service_counters(service);

	if (of_service) {
		of_service->request_packets++;
		of_service->request_bytes += bytes;
	}
	if (of_endpoint) {
		of_endpoint->request_packets++;
		of_endpoint->request_bytes += bytes;
	}
}

static __always_inline void count_reply(u32 service, u32 endpoint, u32 bytes)
{
	struct endpoint_line *of_endpoint = find_endpoint_line(endpoint);
	struct traffic *of_service = find_service_counters(service);

	if (of_service) {
		of_service->reply_packets++;
		of_service->reply_bytes += bytes;
	}
	if (of_endpoint) {
		of_endpoint->reply_packets++;
		of_endpoint->reply_bytes += bytes;
	}
}
