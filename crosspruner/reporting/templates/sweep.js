// Filters over the table of runs, and the comparison of two of them.
{
  const table = document.getElementById("runs");
  const rows = [...table.tBodies[0].rows]; // in the order of the stored configurations
  const search = document.getElementById("search");
  const selects = [...document.querySelectorAll("#filters select")];
  const shown = document.getElementById("shown");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const marks = new Map();
  for (const mark of document.querySelectorAll("svg a")) {
    const address = mark.getAttribute("href") ?? mark.getAttribute("xlink:href");
    marks.set(address, mark);
  }

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let number = 0;
    rows.forEach((row, i) => {
      const wanted =
        words.every((word) => texts[i].includes(word)) &&
        selects.every((s) => s.value === "*" || row.cells[s.dataset.index].dataset.value === s.value);
      row.hidden = !wanted;
      number += wanted;
      const mark = marks.get(row.querySelector("th a").getAttribute("href"));
      if (mark) mark.classList.toggle("dimmed", !wanted);
    });
    shown.textContent = `${number} of ${rows.length} runs`;
  };
  search.addEventListener("input", filter);
  selects.forEach((select) => select.addEventListener("change", filter));
  const form = document.getElementById("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));

  // Comparison
  const configs = JSON.parse(document.getElementById("configs").textContent);
  const choices = [document.getElementById("first"), document.getElementById("second")];
  const names = rows.map((row) => row.querySelector("th a").textContent);
  for (const choice of choices) {
    choice.append(new Option("none", ""), ...names.map((name, i) => new Option(name, i)));
  }
  const boxes = rows.map((row) => row.querySelector("input[type=checkbox]"));
  const comparison = document.getElementById("comparison");
  const note = document.getElementById("comparison-note");
  const headings = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);

  const setting = (run, key) => {
    const position = configs.runs[run][key];
    return position < 0 ? "\u2013" : configs.values[key][position];
  };
  const compare = () => {
    const chosen = choices.map((choice) => choice.value);
    boxes.forEach((box, i) => (box.checked = chosen.includes(String(i))));
    const head = comparison.tHead.rows[0];
    const body = comparison.tBodies[0];
    body.replaceChildren();
    if (chosen.includes("")) {
      note.textContent = "Choose two runs.";
      head.cells[1].textContent = head.cells[2].textContent = "";
      return;
    }
    const [a, b] = chosen.map(Number);
    const add = (name, left, right) => {
      if (left === right) return 0;
      const line = body.insertRow();
      const title = document.createElement("th");
      title.scope = "row";
      title.textContent = name;
      line.append(title);
      for (const value of [left, right]) {
        const cell = line.insertCell();
        cell.className = "text";
        cell.textContent = value;
      }
      return 1;
    };
    head.cells[1].textContent = names[a];
    head.cells[2].textContent = names[b];
    for (let column = 2; column < headings.length; column++) {
      if (rows[a].cells[column].classList.contains("text") && column > 2) continue;
      if (configs.keys.includes(headings[column].toLowerCase())) continue; // a setting, below
      add(headings[column], rows[a].cells[column].innerText, rows[b].cells[column].innerText);
    }
    let different = 0;
    configs.keys.forEach((key, i) => (different += add(key, setting(a, i), setting(b, i))));
    const same = configs.same + configs.keys.length - different;
    note.textContent = `${different} settings differ, ${same} are the same.`;
  };
  choices.forEach((choice) => choice.addEventListener("change", compare));
  boxes.forEach((box, i) =>
    box.addEventListener("change", () => {
      const kept = choices.map((c) => c.value).filter((v) => v !== "" && v !== String(i));
      const next = box.checked ? [...kept.slice(-1), String(i)] : kept;
      choices.forEach((choice, k) => (choice.value = next[k] ?? ""));
      compare();
    }),
  );
}
