// A link carries its code behind "#", where no server and no log sees it.
function takeCode() {
  const code = new URLSearchParams(location.hash.slice(1)).get("token");
  const input = document.getElementById("token");
  if (!code || !input || input.type === "hidden") return;
  input.value = code;
  document.getElementById("token-field").hidden = true;
  history.replaceState(null, "", location.pathname);
  document.getElementById("password").focus();
}
takeCode();
window.addEventListener("hashchange", takeCode);

for (const form of document.forms) {
  form.addEventListener("submit", () => {
    // A second click would send it twice. The button is taken away after it was counted.
    setTimeout(() => form.querySelectorAll("button").forEach((one) => { one.disabled = true; }));
  });
}
// A page that "back" brings out of the browser's memory is to be usable again.
window.addEventListener("pageshow", () => {
  document.querySelectorAll("button").forEach((one) => { one.disabled = false; });
});

const link = document.getElementById("link");
link?.addEventListener("focus", () => link.select());

// Passkeys are the one thing here that needs script: without it, or in a browser that has none, their
// forms stay hidden.
const passkeys = typeof window.PublicKeyCredential?.parseRequestOptionsFromJSON === "function";
for (const form of passkeys ? document.querySelectorAll("form[data-passkey]") : []) {
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const failed = form.querySelector(".error");
    failed.hidden = true;
    try {
      const options = JSON.parse(form.dataset.passkey);
      const made = form.dataset.kind === "create"
        ? await navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options) })
        : await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options) });
      form.elements.credential.value = JSON.stringify(made.toJSON());
      form.submit();
    } catch (error) {
      failed.hidden = false;
      document.querySelectorAll("button").forEach((one) => { one.disabled = false; });
    }
  });
}
