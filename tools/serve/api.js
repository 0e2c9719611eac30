// Shows openapi.json: the operations, their parameters, bodies and answers.
"use strict";

function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

function rows(entries) {
  return element("table", {}, ...entries.map(([head, words]) =>
    element("tr", {}, element("th", {scope: "row", textContent: head}), element("td", {textContent: words}))));
}

// A short notation of a schema, such as {"name": string, "data": [number, …]}.
function shape(schema, all, indent = "") {
  const name = schema.$ref?.split("/").pop();
  if (name) return shape(all[name], all, indent);
  if (schema.anyOf) return schema.anyOf.map(each => shape(each, all, indent)).filter(each => each !== "null").join(" or ");
  if (schema.type === "array") return `[${shape(schema.items ?? {}, all, indent)}, …]`;
  if (schema.properties) {
    const inner = `${indent}  `;
    const lines = Object.entries(schema.properties).map(([key, value]) => `${inner}"${key}": ${shape(value, all, inner)}`);
    return `{\n${lines.join(",\n")}\n${indent}}`;
  }
  if (schema.additionalProperties?.type) return `{"…": ${shape(schema.additionalProperties, all, indent)}, …}`;
  return schema.format ?? schema.type ?? "any";
}

function bodies(content, all) {
  return Object.entries(content ?? {}).filter(([, {schema}]) => schema).map(([kind, {schema}]) =>
    element("pre", {tabIndex: 0, textContent: `${kind}: ${shape(schema, all)}`}));
}

function operation(method, path, {summary, parameters = [], requestBody, responses}, all) {
  const made = element("section", {className: "operation"}, element("h2", {textContent: `${method.toUpperCase()} ${path}`}));
  made.append(element("p", {textContent: summary ?? ""}));
  if (parameters.length) {
    made.append(element("h3", {textContent: "Parameters"}),
      rows(parameters.map(each => [each.name, `${each.in}, ${each.schema.type}`])));
  }
  if (requestBody) {
    made.append(element("h3", {textContent: "Body"}), element("p", {textContent: requestBody.description ?? ""}));
    made.append(...bodies(requestBody.content, all));
  }
  made.append(element("h3", {textContent: "Answers"}));
  made.append(rows(Object.entries(responses).map(([status, {description}]) => [status, description])));
  made.append(...bodies(responses[200]?.content, all));
  return made;
}

fetch("/openapi.json").then(response => response.json()).then(({paths, components}) => {
  const main = document.getElementById("operations");
  for (const [path, operations] of Object.entries(paths)) {
    for (const [method, each] of Object.entries(operations)) {
      main.append(operation(method, path, each, components?.schemas ?? {}));
    }
  }
});
