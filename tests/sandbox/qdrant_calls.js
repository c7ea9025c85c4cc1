// Makes every call that the development Qdrant serves through Qdrant's own client, and prints what came back as JSON.
//   node qdrant_calls.js URL API_KEY FOLDER_OF_SNAPSHOTS
const { QdrantClient } = require("@qdrant/js-client-rest");

const [url, apiKey, snapshots] = process.argv.slice(2);
const tenant = (name) => ({ must: [{ key: "metadata.tenantId", match: { value: name } }] });
const point = (id, tenantId, vector) => ({ id, vector, payload: { metadata: { tenantId }, text: `chunk ${id}` } });

async function refused(call) {
    try {
        await call;
    } catch (error) {
        return { status: error.status, text: error.data?.status?.error };
    }
    throw new Error("this call should have failed");
}

async function main() {
    const client = new QdrantClient({ url, apiKey, checkCompatibility: true });
    const found = {};
    found.version = (await client.versionInfo()).version;
    found.created = await client.createCollection("kb", { vectors: { size: 4, distance: "Cosine" } });
    found.twice = await refused(client.createCollection("kb", { vectors: { size: 4, distance: "Cosine" } }));
    found.exists = [(await client.collectionExists("kb")).exists, (await client.collectionExists("no")).exists];
    found.collections = (await client.getCollections()).collections;
    const schema = { type: "keyword", is_tenant: true };
    await client.createPayloadIndex("kb", { field_name: "metadata.tenantId", field_schema: schema, wait: true });
    const uuid = "0d0c1f3e-5a51-4bb7-8e0c-0123456789ab";
    const points = [point(1, "t1", [1, 0, 0, 0]), point(2, "t2", [0, 1, 0, 0]), point(uuid, "t1", [0, 0, 1, 1])];
    found.upserted = (await client.upsert("kb", { wait: true, points })).status;
    const batch = { ids: [7, 8], vectors: [[1, 1, 0, 0], [1, 1, 1, 0]], payloads: [{ a: 1 }, { a: 2 }] };
    found.upsertedBatch = (await client.upsert("kb", { wait: false, batch })).status;
    found.size = await refused(client.upsert("kb", { points: [point(3, "t1", [1, 2])] }));
    const info = await client.getCollection("kb");
    found.info = [info.status, info.points_count, info.config.params.vectors, info.payload_schema];
    const nearest = { query: [0.9, 0.1, 0, 0], filter: tenant("t1"), limit: 5, with_payload: true };
    found.query = (await client.query("kb", nearest)).points;
    found.queryById = (await client.query("kb", { query: 1, limit: 1 })).points;
    found.vector = (await client.query("kb", { query: [0, 1, 0, 0], limit: 1, with_vector: true })).points;
    found.threshold = (await client.query("kb", { query: [1, 0, 0, 0], score_threshold: 0.99 })).points;
    found.retrieved = await client.retrieve("kb", { ids: [uuid, 99], with_payload: ["text"], with_vector: false });
    found.scrolled = [];
    for (let offset = undefined; offset !== null; ) {
        const page = await client.scroll("kb", { limit: 2, offset, with_payload: false });
        found.scrolled.push(page.points.map((each) => each.id));
        offset = page.next_page_offset;
    }
    found.count = await client.count("kb", { filter: tenant("t1"), exact: true });
    await client.setPayload("kb", { payload: { seen: true }, points: [2], wait: true });
    await client.overwritePayload("kb", { payload: { only: 1 }, points: [7], wait: true });
    await client.deletePayload("kb", { keys: ["a"], points: [8], wait: true });
    found.payloads = await client.retrieve("kb", { ids: [2, 7, 8] });
    await client.delete("kb", { points: [7], wait: true });
    await client.delete("kb", { filter: { must: [{ has_id: [8] }] }, wait: true });
    const snapshot = await client.createSnapshot("kb");
    found.snapshot = [(await client.listSnapshots("kb")).length, snapshot.size > 0, snapshot.checksum.length];
    await client.deleteCollection("kb");
    found.gone = await refused(client.getCollection("kb"));
    const location = `file://${snapshots}/kb/${snapshot.name}`;
    found.recovered = await client.recoverSnapshot("kb", { location, checksum: snapshot.checksum });
    found.after = [await client.count("kb"), await client.count("kb", { filter: tenant("t1") })];
    const own = { location: `${url}/collections/kb/snapshots/${snapshot.name}`, api_key: apiKey };
    await client.recoverSnapshot("scratch", own);
    found.scratch = await client.count("scratch");
    await client.deleteSnapshot("kb", snapshot.name);
    found.snapshotsLeft = await client.listSnapshots("kb");
    await client.deletePayloadIndex("kb", "metadata.tenantId", { wait: true });
    found.schemaLeft = (await client.getCollection("kb")).payload_schema;
    const stranger = new QdrantClient({ url, checkCompatibility: false });
    found.stranger = await refused(stranger.getCollections());
    console.log(JSON.stringify(found));
}

main();
